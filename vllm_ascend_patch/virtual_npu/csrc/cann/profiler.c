/* SPDX-License-Identifier: Apache-2.0
 *
 * What torch_npu.profiler calls: sessions that may be begun and ended, in the order that CANN demands. No device works, so
 * no device records are written; what torch_npu records on the host, operators and their Python callers, is real.
 */
#include <pthread.h>
#include <stdlib.h>

#include "virtual_cann.h"

typedef struct {
    uint32_t devices;
    uint64_t data_types;
} profiling_config;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum { IDLE, READY, RUNNING } state = IDLE;

/* Go from one state to another, or say which call came out of order. */
static int step(const char *function, int from, int to) {
    pthread_mutex_lock(&lock);
    int found = (int)state;
    if (found == from) state = to;
    pthread_mutex_unlock(&lock);
    if (found == from) return ACL_SUCCESS;
    static const char *const names[] = {"not initialised", "initialised", "running"};
    return virtual_error(ACL_ERROR_INVALID_PARAM, "%s: profiling must be %s, but is %s", function, names[from], names[found]);
}

/* The driver's interface, of a version without the device's clock: traces then keep the host's. */
EXPORT int halGetAPIVersion(int *version) {
    *version = 0;
    return ACL_SUCCESS;
}

EXPORT int aclprofInit(const char *path, size_t length) {
    if (path == NULL || length == 0) return virtual_error(ACL_ERROR_INVALID_PARAM, "aclprofInit: no path");
    return step("aclprofInit", IDLE, READY);
}

EXPORT int aclprofFinalize(void) { return step("aclprofFinalize", READY, IDLE); }

EXPORT void *aclprofCreateConfig(uint32_t *devices, uint32_t count, int metrics, const void *events, uint64_t data_types) {
    (void)metrics, (void)events;
    if (count > 0 && devices == NULL) {
        virtual_error(ACL_ERROR_INVALID_PARAM, "aclprofCreateConfig: no list of %u devices", count);
        return NULL;
    }
    profiling_config *config = malloc(sizeof *config);
    if (config) *config = (profiling_config){count, data_types};
    return config;
}

EXPORT int aclprofDestroyConfig(const void *config) {
    free((void *)config);
    return ACL_SUCCESS;
}

EXPORT int aclprofSetConfig(int type, const char *value, size_t length) {
    (void)type, (void)value, (void)length;
    return ACL_SUCCESS;
}

EXPORT int aclprofWarmup(const void *config) {
    (void)config;
    return ACL_SUCCESS;
}

EXPORT int aclprofStart(const void *config) {
    if (config == NULL) return virtual_error(ACL_ERROR_INVALID_PARAM, "aclprofStart: no configuration");
    return step("aclprofStart", READY, RUNNING);
}

EXPORT int aclprofStop(const void *config) {
    if (config == NULL) return virtual_error(ACL_ERROR_INVALID_PARAM, "aclprofStop: no configuration");
    return step("aclprofStop", RUNNING, READY);
}
