/* SPDX-License-Identifier: Apache-2.0
 *
 * Who has waited for which replay. Work completes at once here, so nothing would notice an update of a task group that a device
 * might carry out while the graph's last replay is still to run. Hence streams, events and the host keep what they have
 * waited for, as a program orders it: by waiting for an event or a stream, by synchronising, by reading a result.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "virtual_cann.h"
#include "virtual_graph.h"

static uint64_t made;               /* replays so far, in this process */
static uint64_t all_seen;           /* the host has waited for the whole device after this replay */
static virtual_replays host_seen;   /* what else it has waited for */
static virtual_replays default_stream; /* the stream NULL */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static virtual_replays *of(virtual_stream *stream) { return stream ? &stream->replays : &default_stream; }

static int32_t number_of(const virtual_stream *stream) { return stream ? stream->id : 0; }

static uint64_t newest(const virtual_replays *replays, int32_t stream) {
    for (size_t i = 0; i < replays->count; ++i)
        if (replays->items[i].stream == stream) return replays->items[i].replay;
    return 0;
}

static void learn(virtual_replays *replays, int32_t stream, uint64_t replay) {
    for (size_t i = 0; i < replays->count; ++i)
        if (replays->items[i].stream == stream) {
            if (replays->items[i].replay < replay) replays->items[i].replay = replay;
            return;
        }
    virtual_replay *items = realloc(replays->items, (replays->count + 1) * sizeof *items);
    if (!items) return; /* then an update is refused that need not be */
    replays->items = items;
    items[replays->count++] = (virtual_replay){stream, replay};
}

static void learn_all(virtual_replays *replays, const virtual_replays *from) {
    for (size_t i = 0; i < from->count; ++i) learn(replays, from->items[i].stream, from->items[i].replay);
}

uint64_t virtual_replay_runs(virtual_stream *stream) {
    pthread_mutex_lock(&lock);
    const uint64_t number = ++made;
    learn(of(stream), number_of(stream), number);
    pthread_mutex_unlock(&lock);
    return number;
}

bool virtual_replay_seen(virtual_stream *by, int32_t on, uint64_t number) {
    pthread_mutex_lock(&lock);
    const bool seen = number <= all_seen || number <= newest(&host_seen, on) || number <= newest(of(by), on);
    pthread_mutex_unlock(&lock);
    return seen;
}

void virtual_replays_record(virtual_stream *stream, virtual_replays *event) {
    pthread_mutex_lock(&lock);
    event->count = 0;
    if (made) learn_all(event, of(stream));
    pthread_mutex_unlock(&lock);
}

void virtual_replays_wait(virtual_stream *stream, const virtual_replays *event) {
    pthread_mutex_lock(&lock);
    learn_all(of(stream), event);
    pthread_mutex_unlock(&lock);
}

void virtual_replays_host_waits(const virtual_replays *event) {
    pthread_mutex_lock(&lock);
    learn_all(&host_seen, event);
    pthread_mutex_unlock(&lock);
}

void virtual_replays_host_waits_for_all(void) {
    pthread_mutex_lock(&lock);
    all_seen = made;
    pthread_mutex_unlock(&lock);
}

void virtual_replays_drop(virtual_replays *replays) {
    free(replays->items);
    *replays = (virtual_replays){0};
}

EXPORT void virtual_graph_host_reads(void *stream) { virtual_replays_host_waits(of(stream)); }
