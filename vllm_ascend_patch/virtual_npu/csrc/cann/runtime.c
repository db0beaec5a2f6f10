/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices, contexts, versions and properties of the simulated machine. Memory, streams and everything that is refused
 * have files of their own.
 */
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "virtual_cann.h"
#include "virtual_order.h"

static virtual_profile profile;
static pthread_once_t profile_once = PTHREAD_ONCE_INIT;
static __thread char recent_error[4096];
static __thread int current_device = -1;
static __thread int last_error;
static char contexts[VIRTUAL_MAX_DEVICES]; /* a context is the address of its device's byte */

static void read_profile(void) {
    const char *devices = getenv("VIRTUAL_NPU_DEVICES");
    const char *soc = getenv("VIRTUAL_NPU_SOC");
    const char *memory = getenv("VIRTUAL_NPU_MEMORY");
    profile.devices = devices ? atoi(devices) : 2;
    if (profile.devices < 0 || profile.devices > VIRTUAL_MAX_DEVICES) profile.devices = VIRTUAL_MAX_DEVICES;
    profile.soc_name = soc && strcmp(soc, "A3") == 0 ? "Ascend910_9391" : "Ascend910B1";
    profile.memory = memory ? strtoull(memory, NULL, 10) : (size_t)8 << 30;

    /* The vendor's variable restricts and renumbers devices; only its length matters to identical devices. */
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (visible && *visible) {
        int count = 0;
        for (const char *at = visible; *at;) {
            char *end;
            long id = strtol(at, &end, 10);
            if (end == at || id < 0 || id >= profile.devices) break; /* as CANN: ids after a bad one are invisible */
            ++count;
            at = *end == ',' ? end + 1 : end;
        }
        profile.devices = count;
    }
}

const virtual_profile *virtual_machine(void) {
    pthread_once(&profile_once, read_profile);
    return &profile;
}

int virtual_error(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(recent_error, sizeof recent_error, format, arguments);
    va_end(arguments);
    last_error = code;
    return code;
}

virtual_order_checker virtual_order_told;

EXPORT void virtual_order_check(virtual_order_checker checker) { virtual_order_told = checker; }

int virtual_device(void) { return current_device < 0 ? 0 : current_device; }

EXPORT const char *aclGetRecentErrMsg(void) { return recent_error[0] ? recent_error : NULL; }

EXPORT int aclrtPeekAtLastError(int level) {
    (void)level;
    return last_error;
}

EXPORT int aclrtGetLastError(int level) {
    (void)level;
    int code = last_error;
    last_error = ACL_SUCCESS;
    return code;
}

EXPORT int aclInit(const char *config) {
    (void)config;
    virtual_machine();
    return ACL_SUCCESS;
}

EXPORT int aclFinalize(void) { return ACL_SUCCESS; }

/* Devices and contexts ----------------------------------------------------------------------------------------- */

static int check_device(int device) {
    if (device >= 0 && device < virtual_machine()->devices) return ACL_SUCCESS;
    return virtual_error(ACL_ERROR_RT_INVALID_DEVICEID,
                         "device %d does not exist: the virtual machine has %d NPU(s); see virtual-npu --devices", device,
                         virtual_machine()->devices);
}

EXPORT int aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)virtual_machine()->devices;
    return ACL_SUCCESS;
}

EXPORT int aclrtSetDevice(int32_t device) {
    int code = check_device(device);
    if (code == ACL_SUCCESS) current_device = device;
    return code;
}

EXPORT int aclrtResetDevice(int32_t device) { return check_device(device); }

EXPORT int aclrtGetDevice(int32_t *device) {
    if (current_device < 0) return virtual_error(ACL_ERROR_RT_CONTEXT_NULL, "no device was set in this thread");
    *device = current_device;
    return ACL_SUCCESS;
}

EXPORT int aclrtGetCurrentContext(void **context) {
    if (current_device < 0) return virtual_error(ACL_ERROR_RT_CONTEXT_NULL, "no context was set in this thread");
    *context = &contexts[current_device];
    return ACL_SUCCESS;
}

EXPORT int aclrtSetCurrentContext(void *context) {
    ptrdiff_t device = (char *)context - contexts;
    if (device < 0 || device >= VIRTUAL_MAX_DEVICES)
        return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "%p is not a context of a virtual NPU", context);
    return aclrtSetDevice((int32_t)device);
}

EXPORT int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    if (flags) *flags = 0;
    *active = 1;
    return check_device(device);
}

EXPORT int aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t *logic) {
    *logic = user;
    return check_device(user);
}

EXPORT int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    *can = device != peer;
    return check_device(device) ? ACL_ERROR_RT_INVALID_DEVICEID : check_device(peer);
}

EXPORT int aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
    (void)flags;
    return check_device(peer);
}

EXPORT int aclrtDeviceGetBareTgid(int32_t *pid) {
    *pid = (int32_t)getpid();
    return ACL_SUCCESS;
}

EXPORT int aclrtDeviceGetUuid(int32_t device, char *uuid) {
    memset(uuid, 0, 16);
    memcpy(uuid, "virtual-npu-", 12);
    uuid[15] = (char)device;
    return check_device(device);
}

/* Properties --------------------------------------------------------------------------------------------------- */

EXPORT const char *aclrtGetSocName(void) { return virtual_machine()->soc_name; }

#define CANN_VERSION "9.1.0"

EXPORT int aclsysGetVersionStr(char *package, char *version) {
    (void)package;
    strcpy(version, CANN_VERSION);
    return ACL_SUCCESS;
}

/* acl/acl_rt.h: aclCANNPackageVersion is a version of 128 characters then major, minor, release and patch of 64 each. */
EXPORT int aclsysGetCANNVersion(int package, char *version) {
    (void)package;
    memset(version, 0, 128 + 4 * 64);
    strcpy(version, CANN_VERSION);
    strcpy(version + 128, "9");
    strcpy(version + 128 + 64, "1");
    strcpy(version + 128 + 2 * 64, "0");
    return ACL_SUCCESS;
}

/* Core counts are nominal: 24 cube cores with two vector cores each. Nothing that is simulated depends on them. */
enum { CUBE_CORES = 24, VECTOR_CORES = 48 };

enum { L2_BYTES = 192 << 20 };

static int64_t device_attribute(int attribute) {
    switch (attribute) {
        case 1: return 6;             /* ACL_DEV_ATTR_AICPU_CORE_NUM */
        case 101: return CUBE_CORES;  /* ACL_DEV_ATTR_AICORE_CORE_NUM */
        case 102: return CUBE_CORES;  /* ACL_DEV_ATTR_CUBE_CORE_NUM */
        case 201: return VECTOR_CORES; /* ACL_DEV_ATTR_VECTOR_CORE_NUM */
        case 301: return (int64_t)virtual_machine()->memory; /* ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE */
        case 302: return L2_BYTES;                           /* ACL_DEV_ATTR_L2_CACHE_SIZE */
        default: return -1;
    }
}

EXPORT int aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) {
    *value = device_attribute(attribute);
    if (*value < 0)
        return virtual_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "the virtual NPU has no device attribute %d", attribute);
    return check_device((int)device);
}

/* aclDeviceInfo: 0 AI cores, 1 vector cores, 2 bytes of L2. */
EXPORT int aclGetDeviceCapability(uint32_t device, int info, int64_t *value) {
    *value = info == 0 ? CUBE_CORES : info == 1 ? VECTOR_CORES : info == 2 ? L2_BYTES : 0;
    return check_device((int)device);
}

static uint32_t device_limits[VIRTUAL_MAX_DEVICES][2];

EXPORT int aclrtGetDeviceResLimit(int32_t device, int type, uint32_t *value) {
    int code = check_device(device);
    if (code) return code;
    if (type < 0 || type > 1) return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "resource type %d is neither 0 nor 1", type);
    *value = device_limits[device][type] ? device_limits[device][type] : type ? VECTOR_CORES : CUBE_CORES;
    return ACL_SUCCESS;
}

EXPORT int aclrtSetDeviceResLimit(int32_t device, int type, uint32_t value) {
    int code = check_device(device);
    if (code) return code;
    if (type < 0 || type > 1) return virtual_error(ACL_ERROR_RT_PARAM_INVALID, "resource type %d is neither 0 nor 1", type);
    device_limits[device][type] = value;
    return ACL_SUCCESS;
}

EXPORT int aclrtResetDeviceResLimit(int32_t device) {
    int code = check_device(device);
    if (code == ACL_SUCCESS) memset(device_limits[device], 0, sizeof device_limits[device]);
    return code;
}

EXPORT int aclrtGetResInCurrentThread(int type, uint32_t *value) {
    return aclrtGetDeviceResLimit(virtual_device(), type, value);
}

EXPORT int aclrtGetDeviceUtilizationRate(int32_t device, int32_t *utilization) {
    memset(utilization, 0, 4 * sizeof *utilization); /* cube, vector, AI CPU and memory, in per cent */
    return check_device(device);
}

/* Settings that are accepted because they change nothing here --------------------------------------------------- */

#define ACCEPTED(name)             \
    EXPORT int name(void);         \
    EXPORT int name(void) { return ACL_SUCCESS; }

ACCEPTED(aclSetCompileopt)
ACCEPTED(aclmdlFinalizeDump)
ACCEPTED(aclmdlInitDump)
ACCEPTED(aclmdlSetDump)
ACCEPTED(aclrtCmoAsync)
ACCEPTED(aclrtCtxSetSysParamOpt)
ACCEPTED(aclrtSetDeviceSatMode)
ACCEPTED(aclrtSetOpExecuteTimeOut)
ACCEPTED(aclrtSetOpWaitTimeout)
ACCEPTED(aclrtSetSysParamOpt)

EXPORT int aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t *actual) {
    if (actual) *actual = timeout;
    return ACL_SUCCESS;
}

EXPORT int aclrtGetSysParamOpt(int option, int64_t *value) {
    (void)option;
    *value = 0;
    return ACL_SUCCESS;
}

/* aclCompileOpt 10, just-in-time compilation of operators, is off by default on A2 and A3; the others are unset. */
static const char *compile_option(int option) { return option == 10 ? "disable" : ""; }

EXPORT size_t aclGetCompileoptSize(int option) { return strlen(compile_option(option)) + 1; }

EXPORT int aclGetCompileopt(int option, char *value, size_t length) {
    const char *found = compile_option(option);
    if (length < strlen(found) + 1)
        return virtual_error(ACL_ERROR_INVALID_PARAM, "a compile option needs %zu bytes, not %zu", strlen(found) + 1, length);
    strcpy(value, found);
    return ACL_SUCCESS;
}

/* The device's log. CANN writes it to files under ~/ascend/log; the virtual device keeps none. */
EXPORT void aclAppLog(int level, const char *function, const char *file, uint32_t line, const char *format, ...) {
    (void)level, (void)function, (void)file, (void)line, (void)format;
}

/* Profiling: no device work, hence no records; a host time stamp is real. */
ACCEPTED(MsprofRegisterCallback)
ACCEPTED(MsprofReportAdditionalInfo)
ACCEPTED(MsprofReportApi)
ACCEPTED(MsprofReportCompactInfo)

EXPORT uint64_t MsprofGetHashId(const char *text, size_t length) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < length; ++i) hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    return hash;
}
