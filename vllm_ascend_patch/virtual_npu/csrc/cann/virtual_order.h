/* SPDX-License-Identifier: Apache-2.0
 *
 * What the runtime tells a checker of order (csrc/torch/order_*.cpp) about streams, events, copies and graphs. Without a
 * checker, which is the default, a call is one test of a pointer. What is concluded from it is not known here.
 */
#ifndef VIRTUAL_ORDER_H
#define VIRTUAL_ORDER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum virtual_order_kind {
    ORDER_RECORD,           /* the event `subject` is recorded on `stream`; NULL: on the stream of the replay under way */
    ORDER_WAIT,             /* `stream` (NULL as above) waits for the event `subject` */
    ORDER_EVENT_GONE,       /* the event `subject` is destroyed */
    ORDER_STREAM_GONE,      /* `stream` is destroyed */
    ORDER_SYNC_EVENT,       /* the host waits for the event `subject` */
    ORDER_QUERY_EVENT,      /* the host asks for it; the answer is ORDER_NOT_YET or 0, complete */
    ORDER_SYNC_STREAM,      /* the host waits for `stream` */
    ORDER_SYNC_DEVICE,      /* the host waits for all streams of device `bytes` */
    ORDER_COPY,             /* `stream` copies `bytes` from `source` to `subject` */
    ORDER_FILL,             /* `stream` writes `bytes` to `subject` */
    ORDER_HOST_COPY,        /* the host copies `bytes` from `source` to `subject` itself */
    ORDER_UNMAPPED,         /* `bytes` at `subject` are no memory of a device any more */
    ORDER_CAPTURE_ENDS,     /* of capture number `bytes` */
    ORDER_REPLAY_BEGINS,    /* of graph number `bytes` on `stream` */
    ORDER_REPLAY_ENDS,
    ORDER_GROUP_UPDATED,    /* `stream` replaces the captured call at `subject`, of graph number `bytes` */
    ORDER_GROUP_REPLAYED,   /* the replay under way runs the captured call at `subject` */
};

enum { ORDER_NOT_YET = 1 };

typedef struct {
    enum virtual_order_kind kind;
    void *stream;
    const void *subject;
    const void *source;
    size_t bytes;
} virtual_order_call;

/* Returns 0, ORDER_NOT_YET, or an error code after virtual_graph_error. */
typedef int (*virtual_order_checker)(const virtual_order_call *call);

/* Have `checker` told from now on. */
void virtual_order_check(virtual_order_checker checker);

/* The number of a stream (aclrtStreamGetId) and its device, for messages. */
void virtual_order_stream(void *stream, int *number, int *device);

/* Whether `memory` is a device's or pinned or registered host memory. */
int virtual_registered(const void *memory);

/* Whether `memory` lies in pinned host memory of the runtime's own, and the pages that it has there. */
int virtual_pinned_pages(const void *memory, void **start, size_t *bytes);

extern virtual_order_checker virtual_order_told;

static inline int virtual_order_tell(virtual_order_call call) { return virtual_order_told ? virtual_order_told(&call) : 0; }

#ifdef __cplusplus
}
#endif

#endif
