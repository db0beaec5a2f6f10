/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams and events of a device whose work completes at once: whatever was put on a stream is done, so waiting never
 * blocks, every query answers "complete", and an event holds the host's time at which it was recorded. While a stream is
 * captured (graph.c), what is put on it is recorded instead, and waiting for it is an error.
 */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "virtual_cann.h"
#include "virtual_graph.h"
#include "virtual_order.h"

enum { ACL_EVENT_EXTERNAL = 0x20 }; /* acl/acl_rt.h: its records and waits become calls of a graph */

typedef struct {
    uint64_t microseconds; /* when it was last recorded, on the monotonic clock */
    uint32_t capture;      /* the capture in which it was last recorded, 0 for none */
    virtual_replays replays; /* what had been replayed before its last record */
    bool external;
    bool reset; /* reset and not recorded since */
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
    created->device = virtual_device();
    *stream = created;
    return ACL_SUCCESS;
}

EXPORT int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) {
    (void)priority, (void)flag;
    return aclrtCreateStream(stream);
}

EXPORT void virtual_order_stream(void *stream, int *number, int *device) {
    *number = stream ? ((virtual_stream *)stream)->id : 0;
    *device = stream ? ((virtual_stream *)stream)->device : virtual_device();
}

EXPORT int aclrtDestroyStream(void *stream) {
    virtual_order_tell((virtual_order_call){.kind = ORDER_STREAM_GONE, .stream = stream});
    if (stream) virtual_replays_drop(&((virtual_stream *)stream)->replays);
    free(stream);
    return ACL_SUCCESS;
}

EXPORT int aclrtDestroyStreamForce(void *stream) { return aclrtDestroyStream(stream); }

EXPORT int aclrtStreamGetId(void *stream, int32_t *id) {
    *id = stream ? ((virtual_stream *)stream)->id : 0;
    return ACL_SUCCESS;
}

EXPORT int aclrtStreamQuery(void *stream, int *status) {
    *status = 0; /* ACL_STREAM_STATUS_COMPLETE */
    int refused = virtual_capture_refuses("aclrtStreamQuery", stream);
    return refused ? refused : virtual_order_tell((virtual_order_call){.kind = ORDER_SYNC_STREAM, .stream = stream});
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
NOTHING_TO_DO(aclrtSubscribeReport)
NOTHING_TO_DO(aclrtUnSubscribeReport)

EXPORT int aclrtSynchronizeDevice(void) {
    int refused = virtual_capture_refuses("aclrtSynchronizeDevice", NULL);
    if (refused) return refused;
    const size_t device = (size_t)virtual_device();
    virtual_replays_host_waits_for_all();
    return virtual_order_tell((virtual_order_call){.kind = ORDER_SYNC_DEVICE, .bytes = device});
}

EXPORT int aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
    (void)timeout;
    return aclrtSynchronizeDevice();
}

EXPORT int aclrtSynchronizeStream(void *stream) {
    int refused = virtual_capture_refuses("aclrtSynchronizeStream", stream);
    if (refused) return refused;
    virtual_graph_host_reads(stream);
    return virtual_order_tell((virtual_order_call){.kind = ORDER_SYNC_STREAM, .stream = stream});
}

EXPORT int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t timeout) {
    (void)timeout;
    return aclrtSynchronizeStream(stream);
}

EXPORT int aclrtCreateEventExWithFlag(void **event, uint32_t flag) {
    virtual_event *created = calloc(1, sizeof *created);
    if (!created) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    created->external = flag & ACL_EVENT_EXTERNAL;
    *event = created;
    return ACL_SUCCESS;
}

EXPORT int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }

EXPORT int aclrtCreateEvent(void **event) { return aclrtCreateEventExWithFlag(event, 0); }

EXPORT int aclrtDestroyEvent(void *event) {
    virtual_order_tell((virtual_order_call){.kind = ORDER_EVENT_GONE, .subject = event});
    if (event) virtual_replays_drop(&((virtual_event *)event)->replays);
    free(event);
    return ACL_SUCCESS;
}

/* What is put on a stream: done at once, or recorded as a call of the graph that the stream is captured into. */
static int put(void *stream, const char *name, int (*run)(void *), void *argument) {
    if (virtual_graph_state(stream) != VIRTUAL_STREAM_CAPTURES) return run(argument);
    return virtual_graph_add(stream, &(virtual_call){name, run, NULL, argument});
}

static int record_on(void *stream, virtual_event *event) {
    event->microseconds = now();
    event->capture = 0;
    event->reset = false;
    return virtual_order_tell((virtual_order_call){.kind = ORDER_RECORD, .stream = stream, .subject = event});
}

/* In a replay, whose stream the checker knows. */
static int record_now(void *argument) { return record_on(NULL, argument); }

static int reset_now(void *argument) {
    ((virtual_event *)argument)->reset = true;
    return ACL_SUCCESS;
}

/* Work completes at once, so a stream that would wait for what the host does next waits for ever. */
static int waits_for_ever(void) {
    return virtual_graph_error("the stream waits for an external event that nothing has recorded since it was reset; update the "
                               "graph's task groups and record their events before the replay");
}

static int wait_on(void *stream, virtual_event *event) {
    if (event->reset) return waits_for_ever();
    return virtual_order_tell((virtual_order_call){.kind = ORDER_WAIT, .stream = stream, .subject = event});
}

static int wait_now(void *argument) { return wait_on(NULL, argument); }

EXPORT int aclrtRecordEvent(virtual_event *event, void *stream) {
    if (event->external && virtual_graph_state(stream) == VIRTUAL_STREAM_CAPTURES)
        return put(stream, "record of an external event", record_now, event);
    int code = record_on(stream, event);
    if (!event->external) {
        event->capture = virtual_capture_of(stream);
        virtual_replays_record(stream, &event->replays);
    }
    return code;
}

EXPORT int aclrtResetEvent(virtual_event *event, void *stream) {
    return event->external ? put(stream, "reset of an external event", reset_now, event) : ACL_SUCCESS;
}

EXPORT int aclrtStreamWaitEvent(virtual_stream *stream, virtual_event *event) {
    if (event->external && virtual_graph_state(stream) == VIRTUAL_STREAM_CAPTURES)
        return put(stream, "wait for an external event", wait_now, event);
    if (stream && virtual_capture_is_active(event->capture)) {
        int code = virtual_capture_join(stream, event->capture);
        if (code) return code;
    }
    virtual_replays_wait(stream, &event->replays);
    return wait_on(stream, event);
}

static int refuse_captured(const char *function, const virtual_event *event) {
    if (!virtual_capture_is_active(event->capture)) return ACL_SUCCESS;
    return virtual_error(ACL_ERROR_RT_EVENT_CAPTURED, "%s: the event was recorded on a stream that is captured into a graph",
                         function);
}

EXPORT int aclrtSynchronizeEvent(const virtual_event *event) {
    int refused = refuse_captured("aclrtSynchronizeEvent", event);
    if (refused) return refused;
    virtual_replays_host_waits(&event->replays);
    return virtual_order_tell((virtual_order_call){.kind = ORDER_SYNC_EVENT, .subject = event});
}

EXPORT int aclrtQueryEventStatus(const virtual_event *event, int *status) {
    *status = 1; /* ACL_EVENT_RECORDED_STATUS_COMPLETE */
    int refused = refuse_captured("aclrtQueryEventStatus", event);
    if (refused) return refused;
    int code = virtual_order_tell((virtual_order_call){.kind = ORDER_QUERY_EVENT, .subject = event});
    if (code != ORDER_NOT_YET) {
        virtual_replays_host_waits(&event->replays);
        return code;
    }
    *status = 0; /* ACL_EVENT_RECORDED_STATUS_NOT_READY */
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

/* Words of device memory that a stream writes or waits for; torch_npu's external events are such words. */
typedef struct {
    uint64_t *address, value;
    uint32_t condition;
    void *stream; /* NULL in a graph */
} word;

static int write_word(void *payload) {
    const word *call = payload;
    __atomic_store_n(call->address, call->value, __ATOMIC_SEQ_CST);
    return virtual_order_tell((virtual_order_call){.kind = ORDER_RECORD, .stream = call->stream, .subject = call->address});
}

static int wait_for_word(void *payload) {
    const word *call = payload;
    const uint64_t found = __atomic_load_n(call->address, __ATOMIC_SEQ_CST);
    bool holds = false;
    switch (call->condition) { /* acl/acl_rt.h: ACL_VALUE_WAIT_* */
        case 0: holds = (int64_t)(found - call->value) >= 0; break;
        case 1: holds = found == call->value; break;
        case 2: holds = (found & call->value) != 0; break;
        case 3: holds = ~(found | call->value) != 0; break;
        default: return virtual_graph_error("aclrtValueWait knows the conditions 0 to 3");
    }
    if (!holds) return waits_for_ever();
    return virtual_order_tell((virtual_order_call){.kind = ORDER_WAIT, .stream = call->stream, .subject = call->address});
}

static int put_word(void *stream, const char *name, int (*run)(void *), word call) {
    call.stream = stream;
    if (virtual_graph_state(stream) != VIRTUAL_STREAM_CAPTURES) return run(&call);
    call.stream = NULL;
    word *kept = malloc(sizeof *kept);
    if (!kept) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    *kept = call;
    return virtual_graph_add(stream, &(virtual_call){name, run, free, kept});
}

EXPORT int aclrtValueWrite(uint64_t *address, uint64_t value, uint32_t flag, void *stream) {
    (void)flag;
    return put_word(stream, "aclrtValueWrite", write_word, (word){address, value, 0, NULL});
}

EXPORT int aclrtValueWait(uint64_t *address, uint64_t value, uint32_t flag, void *stream) {
    return put_word(stream, "aclrtValueWait", wait_for_word, (word){address, value, flag, NULL});
}

/* Host callbacks run in the caller's thread, at once, or at every replay. */
typedef struct {
    void (*function)(void *);
    void *argument;
} callback;

static int run_callback(void *payload) {
    const callback *call = payload;
    call->function(call->argument);
    return ACL_SUCCESS;
}

EXPORT int aclrtLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    if (virtual_graph_state(stream) != VIRTUAL_STREAM_CAPTURES) {
        function(argument);
        return ACL_SUCCESS;
    }
    callback *call = malloc(sizeof *call);
    if (!call) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    *call = (callback){function, argument};
    return virtual_graph_add(stream, &(virtual_call){"host callback", run_callback, free, call});
}

EXPORT int aclrtLaunchCallback(void (*function)(void *), void *argument, int block, void *stream) {
    (void)block;
    return aclrtLaunchHostFunc(stream, function, argument);
}

/* A thread that serves callbacks asks in a loop; there never is one left to serve. */
EXPORT int aclrtProcessReport(int32_t timeout) {
    usleep(timeout > 0 && timeout < 10 ? (useconds_t)timeout * 1000 : 10000);
    return ACL_SUCCESS;
}
