/* SPDX-License-Identifier: Apache-2.0
 *
 * Graph capture as the parts of the virtual NPU see it: what a call on a stream has to do, and how a call is recorded.
 * The kernels of the C++ part are recorded as whole calls; the runtime's own work (events, copies, callbacks) likewise.
 */
#ifndef VIRTUAL_GRAPH_H
#define VIRTUAL_GRAPH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char *name;            /* for messages; copied */
    int (*run)(void *payload);   /* 0, or an error code after virtual_graph_error */
    void (*drop)(void *payload); /* may be NULL */
    void *payload;
} virtual_call;

enum {
    VIRTUAL_STREAM_RUNS = 0,     /* no capture: do the work */
    VIRTUAL_STREAM_CAPTURES = 1, /* record the call */
    VIRTUAL_STREAM_UPDATES = 2,  /* the call replaces one of a task group and is not run */
};

/* Whether anything is captured or updated in this process. */
int virtual_graph_busy(void);

/* The number of the capture that `stream` takes part in, 0 for none. */
uint32_t virtual_graph_number(void *stream);

/* What a call on `stream` does now. Cheap while nothing is captured or updated. */
int virtual_graph_state(void *stream);

/* Record `call`, or put it in the place of the one it updates. Takes over the payload. */
int virtual_graph_add(void *stream, const virtual_call *call);

/* While capturing, kernels do run, so that the sizes of their results are known; when the capture ends, nothing of it is
 * left. Call `save` before memory that may be older than the capture is written, and `poison` for results. */
int virtual_graph_save(void *stream, void *memory, size_t bytes);
int virtual_graph_poison(void *stream, void *memory, size_t bytes);

/* The capture on `stream` cannot become a graph any more; `why` is told at its end. */
void virtual_graph_invalidate(void *stream, const char *why);

/* The host reads what was computed on `stream`, hence has waited for it. */
void virtual_graph_host_reads(void *stream);

/* Set the message of the most recent error and return a code for it. */
int virtual_graph_error(const char *message);

#ifdef __cplusplus
}
#endif

#endif
