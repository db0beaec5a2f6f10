/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the simulated CANN runtime share: the machine's profile, error reporting and the state of a thread.
 * The declarations of CANN itself do not belong here: every public function is checked against the headers of the
 * torch_npu wheel by its callers only, so the signatures are written out where the functions are defined.
 */
#ifndef VIRTUAL_CANN_H
#define VIRTUAL_CANN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Error numbers of CANN (acl/error_codes/rt_error_codes.h in the torch_npu wheel). */
enum {
    ACL_SUCCESS = 0,
    ACL_ERROR_INVALID_PARAM = 100000,
    ACL_ERROR_RT_PARAM_INVALID = 107000,
    ACL_ERROR_RT_INVALID_DEVICEID = 107001,
    ACL_ERROR_RT_CONTEXT_NULL = 107002,
    ACL_ERROR_RT_CAPTURE_DEPENDENCY = 107024,
    ACL_ERROR_RT_MODEL_CAPTURED = 107026,
    ACL_ERROR_RT_STREAM_CAPTURED = 107027,
    ACL_ERROR_RT_EVENT_CAPTURED = 107028,
    ACL_ERROR_RT_STREAM_NOT_CAPTURED = 107029,
    ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT = 107030,
    ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED = 107036,
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001,
    ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED = 507903,
};

#define EXPORT __attribute__((visibility("default")))
#define VIRTUAL_MAX_DEVICES 64

typedef struct {
    int devices;
    const char *soc_name;
    size_t memory; /* bytes per device */
} virtual_profile;

/* The profile, read once from the environment that the launcher wrote. */
const virtual_profile *virtual_machine(void);

/* Record `format` as the message of the most recent error of this thread and return `code`. */
int virtual_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The newest replay on each stream that somebody has waited for; replays.c. */
typedef struct {
    int32_t stream;
    uint64_t replay;
} virtual_replay;

typedef struct {
    virtual_replay *items;
    size_t count;
} virtual_replays;

typedef struct {
    int32_t id;
    int device;
    uint32_t overflow_switch;
    uint32_t capture;           /* number of the capture it takes part in or took part in; see graph.c */
    struct task_group *updates; /* the task group whose calls are being replaced on it */
    virtual_replays replays;    /* what its work comes after */
} virtual_stream;

/* graph.c: whether `stream` takes part in a capture that is under way, and that capture's number (0: none). */
uint32_t virtual_capture_of(const virtual_stream *stream);
bool virtual_capture_is_active(uint32_t capture);

/* graph.c: `stream` takes part in `capture` from now on, since it waits for an event of it. */
int virtual_capture_join(virtual_stream *stream, uint32_t capture);

/* graph.c: an error that names `function` if it waits for a stream that is captured (stream given), or is not allowed in
 * this thread while a capture is under way (stream NULL). Such a call ends the capture without a graph. */
int virtual_capture_refuses(const char *function, virtual_stream *stream);

/* replays.c: a graph runs on `stream`; the number of this replay, from 1. */
uint64_t virtual_replay_runs(virtual_stream *stream);

/* replays.c: whether what is put on `by` next comes after replay `number` on the stream with the id `on`. */
bool virtual_replay_seen(virtual_stream *by, int32_t on, uint64_t number);

/* replays.c: an event is recorded on a stream; a stream or the host waits for an event, or the host for the whole device. */
void virtual_replays_record(virtual_stream *stream, virtual_replays *event);
void virtual_replays_wait(virtual_stream *stream, const virtual_replays *event);
void virtual_replays_host_waits(const virtual_replays *event);
void virtual_replays_host_waits_for_all(void);
void virtual_replays_drop(virtual_replays *replays);

/* runtime.c, public: the message of this thread's most recent error, or NULL. */
const char *aclGetRecentErrMsg(void);

/* The device of this thread, 0 when none was set, as torch_npu expects after its lazy initialisation. */
int virtual_device(void);

#endif
