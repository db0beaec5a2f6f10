/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams and events of a device whose work completes at once: whatever was put on a stream is done, so waiting never
 * blocks, every query answers "complete", and an event holds the host's time at which it was recorded.
 */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "virtual_cann.h"

typedef struct {
    int32_t id;
    uint32_t overflow_switch;
} virtual_stream;

typedef struct {
    uint64_t microseconds; /* when it was last recorded, on the monotonic clock */
} virtual_event;

static int32_t next_stream = 1;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

EXPORT uint64_t MsprofSysCycleTime(void) { return now() * 1000; }

EXPORT int aclrtCreateStream(void **stream) {
    virtual_stream *created = calloc(1, sizeof *created);
    if (!created) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    created->id = __atomic_fetch_add(&next_stream, 1, __ATOMIC_RELAXED);
    *stream = created;
    return ACL_SUCCESS;
}

EXPORT int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) {
    (void)priority, (void)flag;
    return aclrtCreateStream(stream);
}

EXPORT int aclrtDestroyStream(void *stream) {
    free(stream);
    return ACL_SUCCESS;
}

EXPORT int aclrtDestroyStreamForce(void *stream) { return aclrtDestroyStream(stream); }

EXPORT int aclrtStreamGetId(void *stream, int32_t *id) {
    *id = stream ? ((virtual_stream *)stream)->id : 0;
    return ACL_SUCCESS;
}

EXPORT int aclrtStreamQuery(void *stream, int *status) {
    (void)stream;
    *status = 0; /* ACL_STREAM_STATUS_COMPLETE */
    return ACL_SUCCESS;
}

EXPORT int aclrtSetStreamOverflowSwitch(void *stream, uint32_t flag) {
    if (stream) ((virtual_stream *)stream)->overflow_switch = flag;
    return ACL_SUCCESS;
}

EXPORT int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) {
    *flag = stream ? ((virtual_stream *)stream)->overflow_switch : 0;
    return ACL_SUCCESS;
}

#define NOTHING_TO_DO(name)        \
    EXPORT int name(void);         \
    EXPORT int name(void) { return ACL_SUCCESS; }

NOTHING_TO_DO(aclrtSetStreamAttribute)
NOTHING_TO_DO(aclrtSetStreamFailureMode)
NOTHING_TO_DO(aclrtStreamWaitEvent)
NOTHING_TO_DO(aclrtSubscribeReport)
NOTHING_TO_DO(aclrtSynchronizeDevice)
NOTHING_TO_DO(aclrtSynchronizeDeviceWithTimeout)
NOTHING_TO_DO(aclrtSynchronizeEvent)
NOTHING_TO_DO(aclrtSynchronizeStream)
NOTHING_TO_DO(aclrtSynchronizeStreamWithTimeout)
NOTHING_TO_DO(aclrtUnSubscribeReport)

EXPORT int aclrtCreateEventExWithFlag(void **event, uint32_t flag) {
    (void)flag;
    virtual_event *created = calloc(1, sizeof *created);
    if (!created) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    *event = created;
    return ACL_SUCCESS;
}

EXPORT int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }

EXPORT int aclrtCreateEvent(void **event) { return aclrtCreateEventExWithFlag(event, 0); }

EXPORT int aclrtDestroyEvent(void *event) {
    free(event);
    return ACL_SUCCESS;
}

EXPORT int aclrtRecordEvent(virtual_event *event, void *stream) {
    (void)stream;
    event->microseconds = now();
    return ACL_SUCCESS;
}

EXPORT int aclrtResetEvent(virtual_event *event, void *stream) {
    (void)event, (void)stream;
    return ACL_SUCCESS;
}

EXPORT int aclrtQueryEventStatus(virtual_event *event, int *status) {
    (void)event;
    *status = 1; /* ACL_EVENT_RECORDED_STATUS_COMPLETE */
    return ACL_SUCCESS;
}

EXPORT int aclrtQueryEventWaitStatus(virtual_event *event, int *status) {
    (void)event;
    *status = 0; /* ACL_EVENT_WAIT_STATUS_COMPLETE */
    return ACL_SUCCESS;
}

EXPORT int aclrtEventElapsedTime(float *milliseconds, virtual_event *start, virtual_event *end) {
    if (!start->microseconds || !end->microseconds)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "the time between two events needs both to be recorded");
    *milliseconds = (float)((double)(int64_t)(end->microseconds - start->microseconds) / 1000.0);
    return ACL_SUCCESS;
}

EXPORT int aclrtEventGetTimestamp(virtual_event *event, uint64_t *timestamp) {
    *timestamp = event->microseconds;
    return ACL_SUCCESS;
}

/* Host callbacks run in the caller's thread, at once. */
EXPORT int aclrtLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    (void)stream;
    function(argument);
    return ACL_SUCCESS;
}

EXPORT int aclrtLaunchCallback(void (*function)(void *), void *argument, int block, void *stream) {
    (void)block, (void)stream;
    function(argument);
    return ACL_SUCCESS;
}

/* A thread that serves callbacks asks in a loop; there never is one left to serve. */
EXPORT int aclrtProcessReport(int32_t timeout) {
    usleep(timeout > 0 && timeout < 10 ? (useconds_t)timeout * 1000 : 10000);
    return ACL_SUCCESS;
}
