/* SPDX-License-Identifier: Apache-2.0
 *
 * Device memory (host memory that is counted per device and refused past the profile's limit), pinned host memory,
 * copies, and the virtual-memory calls behind torch_npu's expandable segments. Counts are per process: two processes
 * on one virtual NPU do not see each other's memory.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "virtual_cann.h"
#include "virtual_graph.h"
#include "virtual_order.h"

enum { HOST = -1, PINNED = -2 /* host memory of the runtime's own */ };

typedef struct allocation {
    char *start;
    size_t size;
    int device; /* or HOST, PINNED */
    struct allocation *next;
} allocation;

static allocation *allocations; /* device memory, pinned and registered host memory; some hundreds at most */
static size_t used[VIRTUAL_MAX_DEVICES], peak[VIRTUAL_MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void survive_fork(void) { pthread_atfork(before_fork, after_fork, after_fork); }

static size_t round_up(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

/* Take `size` bytes from the budget of `device`. */
static bool reserve(int device, size_t size) {
    pthread_mutex_lock(&lock);
    bool fits = used[device] + size <= virtual_machine()->memory;
    if (fits) {
        used[device] += size;
        if (used[device] > peak[device]) peak[device] = used[device];
    }
    pthread_mutex_unlock(&lock);
    return fits;
}

static void release(int device, size_t size) {
    pthread_mutex_lock(&lock);
    used[device] -= size;
    pthread_mutex_unlock(&lock);
}

static int out_of_memory(int device, size_t size) {
    return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION,
                         "virtual NPU %d has %zu of %zu bytes left and %zu were asked for; see virtual-npu --memory", device,
                         virtual_machine()->memory - used[device], virtual_machine()->memory, size);
}

static int record(void *start, size_t size, int device) {
    allocation *entry = malloc(sizeof *entry);
    if (!entry) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    *entry = (allocation){start, size, device, NULL};
    pthread_mutex_lock(&lock);
    entry->next = allocations;
    allocations = entry;
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

static bool forget(void *start, allocation *found) {
    pthread_mutex_lock(&lock);
    allocation **at = &allocations;
    while (*at && (*at)->start != start) at = &(*at)->next;
    allocation *entry = *at;
    if (entry) {
        *at = entry->next;
        *found = *entry;
        free(entry);
    }
    pthread_mutex_unlock(&lock);
    return entry != NULL;
}

/* Pages are committed when first touched, so that a large virtual device costs nothing until it is used. */
static void *map_pages(size_t size, int protection) {
    void *pages = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static int map_and_record(void **pointer, size_t size, int device) {
    *pointer = map_pages(size, PROT_READ | PROT_WRITE);
    if (!*pointer) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host cannot map %zu bytes", size);
    int code = record(*pointer, size, device);
    if (code) munmap(*pointer, size);
    return code;
}

static int unmap_and_forget(void *pointer, const char *function) {
    allocation found;
    if (!pointer) return ACL_SUCCESS;
    if (!forget(pointer, &found))
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "%s: %p was not allocated by it", function, pointer);
    virtual_order_tell((virtual_order_call){.kind = ORDER_UNMAPPED, .subject = found.start, .bytes = found.size});
    munmap(found.start, found.size);
    if (found.device >= 0) release(found.device, found.size);
    return ACL_SUCCESS;
}

EXPORT int aclrtMalloc(void **pointer, size_t size, int policy) {
    (void)policy;
    int device = virtual_device();
    size = round_up(size ? size : 1);
    if (!reserve(device, size)) return out_of_memory(device, size);
    int code = map_and_record(pointer, size, device);
    if (code) release(device, size);
    return code;
}

EXPORT int aclrtMallocAlign32(void **pointer, size_t size, int policy) { return aclrtMalloc(pointer, size, policy); }

EXPORT int aclrtFree(void *pointer) { return unmap_and_forget(pointer, "aclrtFree"); }

EXPORT int aclrtMallocHost(void **pointer, size_t size) { return map_and_record(pointer, round_up(size ? size : 1), PINNED); }

EXPORT int aclrtMallocHostWithCfg(void **pointer, uint64_t size, void *config) {
    (void)config;
    return aclrtMallocHost(pointer, size);
}

EXPORT int aclrtFreeHost(void *pointer) { return unmap_and_forget(pointer, "aclrtFreeHost"); }

EXPORT int aclrtHostRegisterV2(void *pointer, uint64_t size, uint32_t flag) {
    (void)flag;
    return record(pointer, size, HOST);
}

EXPORT int aclrtHostRegister(void *pointer, uint64_t size, int type, void **mapped) {
    (void)type;
    *mapped = pointer;
    return record(pointer, size, HOST);
}

EXPORT int aclrtHostUnregister(void *pointer) {
    allocation found;
    if (forget(pointer, &found)) return ACL_SUCCESS;
    return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtHostUnregister: %p was not registered", pointer);
}

/* acl/acl_rt.h: aclrtPtrAttributes is {id, location type (0 host, 1 device, 2 unregistered), page size, 4 reserved}. */
EXPORT int aclrtPointerGetAttributes(const void *pointer, uint32_t *attributes) {
    memset(attributes, 0, 7 * sizeof *attributes);
    attributes[1] = 2;
    pthread_mutex_lock(&lock);
    for (allocation *entry = allocations; entry; entry = entry->next)
        if ((const char *)pointer >= entry->start && (const char *)pointer < entry->start + entry->size) {
            attributes[0] = entry->device < 0 ? 0 : (uint32_t)entry->device;
            attributes[1] = entry->device < 0 ? 0 : 1;
            attributes[2] = (uint32_t)sysconf(_SC_PAGESIZE);
            break;
        }
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

EXPORT int virtual_registered(const void *memory) {
    uint32_t attributes[7];
    aclrtPointerGetAttributes(memory, attributes);
    return attributes[1] != 2;
}

EXPORT int virtual_pinned_pages(const void *memory, void **start, size_t *bytes) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (allocation *entry = allocations; entry && !found; entry = entry->next)
        if ((const char *)memory >= entry->start && (const char *)memory < entry->start + entry->size) {
            found = entry->device == PINNED;
            *start = entry->start;
            *bytes = entry->size;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT int aclrtGetMemInfo(int attribute, size_t *free_bytes, size_t *total) {
    (void)attribute;
    pthread_mutex_lock(&lock);
    *total = virtual_machine()->memory;
    *free_bytes = *total - used[virtual_device()];
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

/* acl/acl_rt.h: aclrtMemUsageInfo. One module, "TORCH", holds all memory of this process. */
typedef struct {
    char name[32];
    uint64_t current, peak;
    size_t reserved[8];
} memory_usage;

EXPORT int aclrtGetMemUsageInfo(int32_t device, memory_usage *usage, size_t capacity, size_t *count) {
    *count = 0;
    if (device < 0 || device >= virtual_machine()->devices)
        return virtual_error(ACL_ERROR_RT_INVALID_DEVICEID, "device %d does not exist", device);
    if (capacity) {
        *usage = (memory_usage){.name = "TORCH", .current = used[device], .peak = peak[device]};
        *count = 1;
    }
    return ACL_SUCCESS;
}

/* Copies -------------------------------------------------------------------------------------------------------- */

static int copy(void *destination, size_t capacity, const void *source, size_t count) {
    if (count > capacity)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "a copy of %zu bytes does not fit into %zu", count, capacity);
    if (count) memmove(destination, source, count);
    return ACL_SUCCESS;
}

EXPORT int aclrtMemcpy(void *destination, size_t capacity, const void *source, size_t count, int kind) {
    (void)kind;
    int code = virtual_capture_refuses("aclrtMemcpy", NULL);
    if (code) return code;
    virtual_replays_host_waits_for_all();
    code = virtual_order_tell((virtual_order_call){ORDER_HOST_COPY, NULL, destination, source, count});
    return code ? code : copy(destination, capacity, source, count);
}

typedef struct {
    void *destination;
    const void *source;
    size_t count;
} graph_copy;

static int run_copy(void *payload) {
    const graph_copy *call = payload;
    return copy(call->destination, call->count, call->source, call->count);
}

EXPORT int aclrtMemcpyAsync(void *destination, size_t capacity, const void *source, size_t count, int kind, void *stream) {
    (void)kind;
    if (virtual_graph_state(stream) != VIRTUAL_STREAM_CAPTURES || count > capacity) {
        int code = virtual_order_tell((virtual_order_call){ORDER_COPY, stream, destination, source, count});
        return code ? code : copy(destination, capacity, source, count);
    }
    graph_copy *call = malloc(sizeof *call);
    if (!call) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    *call = (graph_copy){destination, source, count};
    return virtual_graph_add(stream, &(virtual_call){"aclrtMemcpyAsync", run_copy, free, call});
}

EXPORT int aclrtMemcpyAsyncWithCondition(void *destination, size_t capacity, const void *source, size_t count, int kind,
                                         void *stream) {
    return aclrtMemcpyAsync(destination, capacity, source, count, kind, stream);
}

EXPORT int aclrtMemcpyBatch(void **destinations, size_t *capacities, void **sources, size_t *sizes, size_t batches,
                            void *attributes, size_t *indexes, size_t attribute_count, size_t *failed) {
    (void)attributes, (void)indexes, (void)attribute_count;
    for (size_t i = 0; i < batches; ++i) {
        int code = copy(destinations[i], capacities[i], sources[i], sizes[i]);
        if (code) {
            if (failed) *failed = i;
            return code;
        }
    }
    return ACL_SUCCESS;
}

EXPORT int aclrtMemcpyBatchAsync(void **destinations, size_t *capacities, void **sources, size_t *sizes, size_t batches,
                                 void *attributes, size_t *indexes, size_t attribute_count, size_t *failed, void *stream) {
    int refused = virtual_capture_refuses("aclrtMemcpyBatchAsync", stream);
    if (refused) return refused;
    return aclrtMemcpyBatch(destinations, capacities, sources, sizes, batches, attributes, indexes, attribute_count, failed);
}

EXPORT int aclrtMemset(void *pointer, size_t capacity, int32_t value, size_t count) {
    if (count > capacity)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "a fill of %zu bytes does not fit into %zu", count, capacity);
    if (count) memset(pointer, value, count);
    return ACL_SUCCESS;
}

EXPORT int aclrtMemsetAsync(void *pointer, size_t capacity, int32_t value, size_t count, void *stream) {
    int refused = virtual_capture_refuses("aclrtMemsetAsync", stream); /* torch's operators fill with kernels */
    if (refused) return refused;
    int code = virtual_order_tell((virtual_order_call){.kind = ORDER_FILL, .stream = stream, .subject = pointer, .bytes = count});
    return code ? code : aclrtMemset(pointer, capacity, value, count);
}

/* Virtual memory: address ranges, into which counted physical memory is mapped ---------------------------------- */

typedef struct {
    size_t size;
    int device;
} physical_memory;

/* acl/acl_rt.h: aclrtPhysicalMemProp. */
typedef struct {
    int handle_type, allocation_type, memory_attribute;
    uint32_t device;
    int location_type;
    uint64_t reserved;
} physical_properties;

EXPORT int aclrtReserveMemAddress(void **pointer, size_t size, size_t alignment, void *expected, uint64_t flags) {
    (void)alignment, (void)expected, (void)flags;
    size = round_up(size);
    *pointer = map_pages(size, PROT_NONE);
    if (!*pointer) return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host cannot reserve %zu bytes", size);
    return record(*pointer, size, HOST);
}

EXPORT int aclrtReleaseMemAddress(void *pointer) { return unmap_and_forget(pointer, "aclrtReleaseMemAddress"); }

EXPORT int aclrtMallocPhysical(void **handle, size_t size, const physical_properties *properties, uint64_t flags) {
    (void)flags;
    int device = (int)properties->device;
    if (device < 0 || device >= virtual_machine()->devices)
        return virtual_error(ACL_ERROR_RT_INVALID_DEVICEID, "device %d does not exist", device);
    if (!reserve(device, size)) return out_of_memory(device, size);
    physical_memory *memory = malloc(sizeof *memory);
    if (!memory) {
        release(device, size);
        return virtual_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
    }
    *memory = (physical_memory){size, device};
    *handle = memory;
    return ACL_SUCCESS;
}

EXPORT int aclrtFreePhysical(void *handle) {
    physical_memory *memory = handle;
    release(memory->device, memory->size);
    free(memory);
    return ACL_SUCCESS;
}

EXPORT int aclrtMapMem(void *pointer, size_t size, size_t offset, void *handle, uint64_t flags) {
    (void)offset, (void)flags;
    if (mprotect(pointer, size, PROT_READ | PROT_WRITE))
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtMapMem: %p was not reserved", pointer);
    return record(pointer, size, ((physical_memory *)handle)->device);
}

EXPORT int aclrtUnmapMem(void *pointer) {
    allocation found;
    if (!forget(pointer, &found))
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtUnmapMem: %p was not mapped", pointer);
    virtual_order_tell((virtual_order_call){.kind = ORDER_UNMAPPED, .subject = found.start, .bytes = found.size});
    madvise(found.start, found.size, MADV_DONTNEED);
    mprotect(found.start, found.size, PROT_NONE);
    return ACL_SUCCESS;
}
