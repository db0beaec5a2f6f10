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
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001,
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

/* The device of this thread, 0 when none was set, as torch_npu expects after its lazy initialisation. */
int virtual_device(void);

#endif
