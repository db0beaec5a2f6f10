/* SPDX-License-Identifier: Apache-2.0
 *
 * Captures, graphs and task groups (aclmdlRI*). A graph is the list of calls that were made on the captured streams, in
 * the order in which the host made them; since work completes at once here, replaying them in that order keeps every
 * dependency between streams. What a call is, is not known here: see virtual_graph.h.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "virtual_cann.h"
#include "virtual_graph.h"
#include "virtual_order.h"

enum capture_mode { MODE_GLOBAL = 0, MODE_THREAD_LOCAL = 1, MODE_RELAXED = 2 }; /* aclmdlRICaptureMode */
enum capture_status { STATUS_NONE = 0, STATUS_ACTIVE = 1, STATUS_INVALIDATED = 2 }; /* aclmdlRICaptureStatus */

typedef struct {
    char *memory;
    size_t bytes;
    char *content; /* NULL: memory to poison */
} kept_memory;

typedef struct {
    virtual_call call;
    int32_t stream;
    bool grouped; /* a task group's, which an update may replace */
} node;

typedef struct task_group {
    struct model *model;
    size_t first, count, updated;
    bool fresh; /* updated since the graph's last replay */
    struct task_group *next;
} task_group;

typedef struct model {
    uint32_t number;
    enum capture_mode mode;
    pthread_t owner;
    virtual_stream *origin;
    bool capturing;
    char invalid[512]; /* why no graph can come of it */
    node *nodes;
    size_t count, capacity;
    kept_memory *kept;
    size_t kept_count, kept_capacity;
    task_group *groups, *open_group;
    uint64_t replay;   /* number of its last replay, 0 for none */
    int32_t replay_on; /* id of the stream that it ran on */
    struct model *next; /* in the list of captures under way */
} model;

static model *captures; /* under way; one or two at most */
static uint32_t captures_made;
static int busy_streams; /* captures and updates under way: 0 lets every call pass at once */
static __thread enum capture_mode thread_mode = MODE_GLOBAL;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *grown(void *items, size_t count, size_t *capacity, size_t size) {
    if (count < *capacity) return items;
    size_t wanted = *capacity ? 2 * *capacity : 64;
    void *larger = realloc(items, wanted * size);
    if (larger) *capacity = wanted;
    return larger;
}

static int no_memory(void) { return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory"); }

static model *find_capture(uint32_t number) {
    pthread_mutex_lock(&lock);
    model *found = captures;
    while (found && found->number != number) found = found->next;
    pthread_mutex_unlock(&lock);
    return found;
}

static model *capture_on(const virtual_stream *stream) {
    if (!__atomic_load_n(&busy_streams, __ATOMIC_ACQUIRE) || !stream || !stream->capture) return NULL;
    return find_capture(stream->capture);
}

static void drop_call(virtual_call *call) {
    if (call->drop) call->drop(call->payload);
    free((char *)call->name);
}

static void drop_model(model *model) {
    for (size_t i = 0; i < model->count; ++i) drop_call(&model->nodes[i].call);
    for (task_group *group = model->groups; group;) {
        task_group *next = group->next;
        free(group);
        group = next;
    }
    virtual_order_tell((virtual_order_call){
        .kind = ORDER_UNMAPPED, .subject = model->nodes, .bytes = model->count * sizeof *model->nodes});
    free(model->nodes);
    free(model);
}

/* What the other parts ask --------------------------------------------------------------------------------------- */

uint32_t virtual_capture_of(const virtual_stream *stream) {
    const model *capture = capture_on(stream);
    return capture ? capture->number : 0;
}

bool virtual_capture_is_active(uint32_t capture) { return capture && find_capture(capture) != NULL; }

int virtual_capture_join(virtual_stream *stream, uint32_t capture) {
    const uint32_t current = virtual_capture_of(stream);
    if (current && current != capture)
        return virtual_error(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "a stream that is captured waits for an event of another capture");
    stream->capture = capture;
    return ACL_SUCCESS;
}

int virtual_capture_refuses(const char *function, virtual_stream *stream) {
    if (!__atomic_load_n(&busy_streams, __ATOMIC_ACQUIRE)) return ACL_SUCCESS;
    char why[256];
    if (stream) {
        if (!capture_on(stream)) return ACL_SUCCESS;
        snprintf(why, sizeof why, "%s is not possible on a stream that is captured into a graph: nothing that was put on it has run", function);
        virtual_graph_invalidate(stream, why);
        return virtual_error(ACL_ERROR_RT_STREAM_CAPTURED, "%s", why);
    }
    if (thread_mode == MODE_RELAXED) return ACL_SUCCESS;
    pthread_mutex_lock(&lock);
    model *found = captures;
    while (found && !(found->mode == MODE_GLOBAL || (found->mode == MODE_THREAD_LOCAL && pthread_equal(found->owner, pthread_self()))))
        found = found->next;
    if (found) {
        snprintf(why, sizeof why, "%s is not allowed while a stream is captured into a graph", function);
        if (!found->invalid[0]) strcpy(found->invalid, why);
    }
    pthread_mutex_unlock(&lock);
    return found ? virtual_error(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, "%s", why) : ACL_SUCCESS;
}

/* virtual_graph.h ------------------------------------------------------------------------------------------------ */

EXPORT int virtual_graph_busy(void) { return __atomic_load_n(&busy_streams, __ATOMIC_ACQUIRE); }

EXPORT uint32_t virtual_graph_number(void *stream) { return virtual_capture_of(stream); }

EXPORT int virtual_graph_state(void *stream) {
    if (!__atomic_load_n(&busy_streams, __ATOMIC_ACQUIRE) || !stream) return VIRTUAL_STREAM_RUNS;
    if (((virtual_stream *)stream)->updates) return VIRTUAL_STREAM_UPDATES;
    return capture_on(stream) ? VIRTUAL_STREAM_CAPTURES : VIRTUAL_STREAM_RUNS;
}

static int replace_call(virtual_stream *stream, const virtual_call *call) {
    task_group *group = stream->updates;
    if (group->updated == group->count)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID,
                             "the update of a task group of %zu call(s) makes one more: %s", group->count, call->name);
    virtual_call *place = &group->model->nodes[group->first + group->updated].call;
    if (strcmp(place->name, call->name) != 0)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID,
                             "the update of a task group calls %s where %s was captured", call->name, place->name);
    int code = virtual_order_tell((virtual_order_call){
        .kind = ORDER_GROUP_UPDATED, .stream = stream, .subject = place, .bytes = group->model->number});
    if (code) return code;
    if (place->drop) place->drop(place->payload);
    place->run = call->run, place->drop = call->drop, place->payload = call->payload;
    ++group->updated;
    return ACL_SUCCESS;
}

EXPORT int virtual_graph_add(void *on, const virtual_call *call) {
    virtual_stream *stream = on;
    int code;
    if (stream->updates) {
        code = replace_call(stream, call);
    } else {
        model *capture = capture_on(stream);
        node *nodes = grown(capture->nodes, capture->count, &capture->capacity, sizeof *nodes);
        code = nodes ? ACL_SUCCESS : no_memory();
        if (nodes) {
            capture->nodes = nodes;
            nodes[capture->count] = (node){*call, stream->id, capture->open_group != NULL};
            nodes[capture->count++].call.name = strdup(call->name);
            if (capture->open_group) ++capture->open_group->count;
        }
    }
    if (code && call->drop) call->drop(call->payload);
    return code;
}

static int keep(void *stream, void *memory, size_t bytes, bool content) {
    model *capture = capture_on(stream);
    if (!capture || !bytes) return ACL_SUCCESS;
    if (content)
        for (size_t i = 0; i < capture->kept_count; ++i)
            if (capture->kept[i].content && capture->kept[i].memory == memory && capture->kept[i].bytes >= bytes)
                return ACL_SUCCESS;
    kept_memory *kept = grown(capture->kept, capture->kept_count, &capture->kept_capacity, sizeof *kept);
    if (!kept) return no_memory();
    capture->kept = kept;
    char *copy = NULL;
    if (content) {
        copy = malloc(bytes);
        if (!copy) return no_memory();
        memcpy(copy, memory, bytes);
    }
    kept[capture->kept_count++] = (kept_memory){memory, bytes, copy};
    return ACL_SUCCESS;
}

EXPORT int virtual_graph_save(void *stream, void *memory, size_t bytes) { return keep(stream, memory, bytes, true); }

EXPORT int virtual_graph_poison(void *stream, void *memory, size_t bytes) { return keep(stream, memory, bytes, false); }

/* All bits set is NaN in every floating type, -1 in every integer type. */
static void forget_results(model *capture) {
    for (size_t i = 0; i < capture->kept_count; ++i)
        if (!capture->kept[i].content) memset(capture->kept[i].memory, 0xFF, capture->kept[i].bytes);
    for (size_t i = capture->kept_count; i-- > 0;)
        if (capture->kept[i].content) {
            memcpy(capture->kept[i].memory, capture->kept[i].content, capture->kept[i].bytes);
            free(capture->kept[i].content);
        }
    free(capture->kept);
    capture->kept = NULL;
    capture->kept_count = capture->kept_capacity = 0;
}

EXPORT void virtual_graph_invalidate(void *stream, const char *why) {
    model *capture = capture_on(stream);
    if (capture && !capture->invalid[0]) snprintf(capture->invalid, sizeof capture->invalid, "%s", why);
}

EXPORT int virtual_graph_error(const char *message) { return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "%s", message); }

/* Captures and graphs -------------------------------------------------------------------------------------------- */

EXPORT int aclmdlRICaptureBegin(virtual_stream *stream, int mode) {
    if (!stream) return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "the default stream cannot be captured into a graph");
    if (capture_on(stream)) return virtual_error(ACL_ERROR_RT_STREAM_CAPTURED, "the stream is captured into a graph already");
    model *capture = calloc(1, sizeof *capture);
    if (!capture) return no_memory();
    capture->mode = (enum capture_mode)mode;
    capture->owner = pthread_self();
    capture->origin = stream;
    capture->capturing = true;
    pthread_mutex_lock(&lock);
    capture->number = ++captures_made;
    capture->next = captures;
    captures = capture;
    pthread_mutex_unlock(&lock);
    stream->capture = capture->number;
    __atomic_add_fetch(&busy_streams, 1, __ATOMIC_ACQ_REL);
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureEnd(virtual_stream *stream, model **graph) {
    *graph = NULL;
    model *capture = capture_on(stream);
    if (!capture) return virtual_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not captured into a graph");
    if (capture->origin != stream)
        return virtual_error(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, "the capture was begun on another stream");
    if (capture->open_group && !capture->invalid[0])
        strcpy(capture->invalid, "a task group was begun and not ended (graph_task_group_end)");
    pthread_mutex_lock(&lock);
    model **at = &captures;
    while (*at != capture) at = &(*at)->next;
    *at = capture->next;
    pthread_mutex_unlock(&lock);
    __atomic_sub_fetch(&busy_streams, 1, __ATOMIC_ACQ_REL);
    stream->capture = 0;
    capture->capturing = false;
    forget_results(capture);
    virtual_order_tell((virtual_order_call){.kind = ORDER_CAPTURE_ENDS, .bytes = capture->number});
    if (capture->invalid[0]) {
        int code = virtual_error(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "no graph was captured: %s", capture->invalid);
        drop_model(capture);
        return code;
    }
    *graph = capture;
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureGetInfo(const virtual_stream *stream, int *status, model **graph) {
    model *capture = capture_on(stream);
    *status = !capture ? STATUS_NONE : capture->invalid[0] ? STATUS_INVALIDATED : STATUS_ACTIVE;
    if (graph) *graph = capture;
    return ACL_SUCCESS;
}

EXPORT int aclmdlRIGetId(const model *graph, uint32_t *id) {
    *id = graph->number;
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureThreadExchangeMode(int *mode) {
    const int previous = (int)thread_mode;
    thread_mode = (enum capture_mode)*mode;
    *mode = previous;
    return ACL_SUCCESS;
}

/* A replay takes all of its task groups' host values from one step, or those of the replay before. */
static int check_updates(const model *graph) {
    size_t groups = 0, fresh = 0;
    for (const task_group *group = graph->groups; group; group = group->next) ++groups, fresh += group->fresh;
    if (!fresh || fresh == groups) return ACL_SUCCESS;
    return virtual_error(ACL_ERROR_RT_PARAM_INVALID,
                         "%zu of the graph's %zu task groups were updated since its last replay: the others would run with the "
                         "host values of the replay before", fresh, groups);
}

EXPORT int aclmdlRIExecuteAsync(model *graph, virtual_stream *stream) {
    if (graph->capturing) return virtual_error(ACL_ERROR_RT_MODEL_CAPTURED, "the graph's capture has not ended");
    if (capture_on(stream)) {
        virtual_graph_invalidate(stream, "a graph was replayed on it; the virtual NPU has no graphs in graphs");
        return virtual_error(ACL_ERROR_RT_STREAM_CAPTURED, "a graph cannot be replayed on a stream that is captured");
    }
    const int stale = check_updates(graph);
    if (stale) return stale;
    for (task_group *group = graph->groups; group; group = group->next) group->fresh = false;
    graph->replay = virtual_replay_runs(stream);
    graph->replay_on = stream ? stream->id : 0;
    int code = virtual_order_tell((virtual_order_call){.kind = ORDER_REPLAY_BEGINS, .stream = stream, .bytes = graph->number});
    for (size_t i = 0; i < graph->count && !code; ++i) {
        const node *node = &graph->nodes[i];
        if (node->grouped) code = virtual_order_tell((virtual_order_call){.kind = ORDER_GROUP_REPLAYED, .subject = &node->call});
        if (!code) code = node->call.run(node->call.payload);
        if (code) {
            char reason[3072];
            snprintf(reason, sizeof reason, "%s", aclGetRecentErrMsg());
            virtual_error(code, "replay of call %zu of %zu, %s: %s", i + 1, graph->count, node->call.name, reason);
        }
    }
    virtual_order_tell((virtual_order_call){.kind = ORDER_REPLAY_ENDS});
    return code;
}

EXPORT int aclmdlRIDestroy(model *graph) {
    if (graph) drop_model(graph);
    return ACL_SUCCESS;
}

static void print_calls(const model *graph, FILE *file) {
    fputs("{\"traceEvents\":[", file);
    for (size_t i = 0; i < graph->count; ++i)
        fprintf(file, "%s\n{\"name\":\"%s\",\"ph\":\"X\",\"ts\":%zu,\"dur\":1,\"pid\":%u,\"tid\":%d}", i ? "," : "",
                graph->nodes[i].call.name, i, graph->number, graph->nodes[i].stream);
    fputs("\n]}\n", file);
}

EXPORT int aclmdlRIDebugPrint(const model *graph) {
    print_calls(graph, stderr);
    return ACL_SUCCESS;
}

EXPORT int aclmdlRIDebugJsonPrint(const model *graph, const char *path, uint32_t flags) {
    (void)flags;
    FILE *file = fopen(path, "w");
    if (!file) return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "%s cannot be written", path);
    print_calls(graph, file);
    fclose(file);
    return ACL_SUCCESS;
}

/* Task groups ---------------------------------------------------------------------------------------------------- */

EXPORT int aclmdlRICaptureTaskGrpBegin(virtual_stream *stream) {
    model *capture = capture_on(stream);
    if (!capture) return virtual_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "a task group needs a stream that is captured");
    if (capture->open_group) return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "the task group before this one was not ended");
    task_group *group = calloc(1, sizeof *group);
    if (!group) return no_memory();
    *group = (task_group){.model = capture, .first = capture->count, .next = capture->groups};
    capture->groups = capture->open_group = group;
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureTaskGrpEnd(virtual_stream *stream, task_group **handle) {
    model *capture = capture_on(stream);
    if (!capture || !capture->open_group)
        return virtual_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "no task group was begun on this stream");
    if (!capture->open_group->count)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "the task group has no call that could be updated");
    *handle = capture->open_group;
    capture->open_group = NULL;
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureTaskUpdateBegin(virtual_stream *stream, task_group *group) {
    if (!stream || capture_on(stream) || stream->updates)
        return virtual_error(ACL_ERROR_RT_STREAM_CAPTURED,
                             "a task group is updated on a stream of its own that neither captures nor updates anything else");
    if (group->model->capturing)
        return virtual_error(ACL_ERROR_RT_MODEL_CAPTURED, "a task group can be updated when its graph's capture has ended");
    /* The checker of order finds this, too, and names both calls. */
    if (!virtual_order_told && group->model->replay &&
        !virtual_replay_seen(stream, group->model->replay_on, group->model->replay))
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID,
                             "the update of a task group may overtake the last replay of its graph, which would then run with the "
                             "new values: let the updating stream wait for the stream of the replay, or the host for its results");
    group->updated = 0;
    stream->updates = group;
    __atomic_add_fetch(&busy_streams, 1, __ATOMIC_ACQ_REL);
    return ACL_SUCCESS;
}

EXPORT int aclmdlRICaptureTaskUpdateEnd(virtual_stream *stream) {
    task_group *group = stream ? stream->updates : NULL;
    if (!group) return virtual_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "no task group is updated on this stream");
    stream->updates = NULL;
    __atomic_sub_fetch(&busy_streams, 1, __ATOMIC_ACQ_REL);
    if (group->updated != group->count)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "the update replaced %zu of the task group's %zu call(s)", group->updated,
                             group->count);
    group->fresh = true;
    return ACL_SUCCESS;
}
