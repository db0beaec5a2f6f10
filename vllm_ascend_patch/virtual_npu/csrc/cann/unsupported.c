/* SPDX-License-Identifier: Apache-2.0
 *
 * What torch_npu links against and the virtual NPU does not have: compiled operators, kernel launches, memory shared
 * between processes, and CANN's own collectives. Each of them fails with its name, so that torch_npu raises with it.
 */
#include <stdlib.h>

#include "virtual_cann.h"

/* Not 207000, "feature not supported": torch_npu takes that for an old driver, warns once and goes on. */
enum { UNSUPPORTED_CODE = 107000 /* ACL_ERROR_RT_PARAM_INVALID */ };

#define UNSUPPORTED(name)                                                                                             \
    EXPORT int name(void);                                                                                            \
    EXPORT int name(void) {                                                                                           \
        return virtual_error(UNSUPPORTED_CODE, "the virtual NPU does not support %s", #name);         \
    }

/* Compiled operators. Descriptors are built before the operator's name is known; the execution names it. */
EXPORT int aclopCompileAndExecute(const char *operator_type) {
    return virtual_error(UNSUPPORTED_CODE, "the virtual NPU has no kernel for the operator %s",
                         operator_type);
}

EXPORT int aclopCompileAndExecuteV2(const char *operator_type) { return aclopCompileAndExecute(operator_type); }

EXPORT int aclGenGraphAndDumpForOp(const char *operator_type) { return aclopCompileAndExecute(operator_type); }

typedef struct {
    int type, format;
} tensor_description;

EXPORT void *aclCreateTensorDesc(int type, int dims, const int64_t *sizes, int format) {
    (void)dims, (void)sizes;
    tensor_description *description = malloc(sizeof *description);
    if (description) *description = (tensor_description){type, format};
    return description;
}

EXPORT void aclDestroyTensorDesc(void *description) { free(description); }
EXPORT int aclGetTensorDescType(const tensor_description *description) { return description->type; }
EXPORT int aclGetTensorDescFormat(const tensor_description *description) { return description->format; }

EXPORT size_t aclGetTensorDescNumDims(const tensor_description *description) {
    (void)description;
    return 0;
}

static char handle; /* the address of every object that has no content */

#define HANDLE(create, destroy)                        \
    EXPORT void *create(void);                         \
    EXPORT void *create(void) { return &handle; }      \
    EXPORT int destroy(void);                          \
    EXPORT int destroy(void) { return ACL_SUCCESS; }

HANDLE(aclCreateDataBuffer, aclDestroyDataBuffer)
HANDLE(aclopCreateAttr, aclopDestroyAttr)
HANDLE(aclCreateGraphDumpOpt, aclDestroyGraphDumpOpt)

#define DESCRIBES_AN_OPERATOR(name) \
    EXPORT int name(void);          \
    EXPORT int name(void) { return ACL_SUCCESS; }

DESCRIBES_AN_OPERATOR(aclGetTensorDescDimV2)
DESCRIBES_AN_OPERATOR(aclSetTensorDescName)
DESCRIBES_AN_OPERATOR(aclSetTensorFormat)
DESCRIBES_AN_OPERATOR(aclSetTensorPlaceMent)
DESCRIBES_AN_OPERATOR(aclSetTensorShape)
DESCRIBES_AN_OPERATOR(aclSetTensorConst)
DESCRIBES_AN_OPERATOR(aclopSetAttrBool)
DESCRIBES_AN_OPERATOR(aclopSetAttrDataType)
DESCRIBES_AN_OPERATOR(aclopSetAttrFloat)
DESCRIBES_AN_OPERATOR(aclopSetAttrInt)
DESCRIBES_AN_OPERATOR(aclopSetAttrListBool)
DESCRIBES_AN_OPERATOR(aclopSetAttrListFloat)
DESCRIBES_AN_OPERATOR(aclopSetAttrListInt)
DESCRIBES_AN_OPERATOR(aclopSetAttrListListInt)
DESCRIBES_AN_OPERATOR(aclopSetAttrString)

/* Kernels that are launched by address. */
UNSUPPORTED(aclrtBinaryGetFunction)
UNSUPPORTED(aclrtBinaryLoadFromData)
UNSUPPORTED(aclrtGetFunctionAddr)
UNSUPPORTED(aclrtGetHardwareSyncAddr)
UNSUPPORTED(aclrtLaunchKernelWithHostArgs)
UNSUPPORTED(rtDevBinaryRegister)
UNSUPPORTED(rtFunctionRegister)
UNSUPPORTED(rtGetC2cCtrlAddr)
UNSUPPORTED(rtKernelLaunch)

/* Memory and events shared between processes. */
UNSUPPORTED(aclrtIpcGetEventHandle)
UNSUPPORTED(aclrtIpcMemClose)
UNSUPPORTED(aclrtIpcMemGetExportKey)
UNSUPPORTED(aclrtIpcMemImportByKey)
UNSUPPORTED(aclrtIpcMemSetImportPid)
UNSUPPORTED(aclrtIpcOpenEventHandle)
UNSUPPORTED(aclrtMemExportToShareableHandle)
UNSUPPORTED(aclrtMemImportFromShareableHandle)
UNSUPPORTED(aclrtMemSetPidToShareableHandle)

/* Conditional nodes of graphs. */
UNSUPPORTED(aclmdlRIAddCondTask)
UNSUPPORTED(aclmdlRICaptureToModelRIBegin)
UNSUPPORTED(aclmdlRICondHandleCreate)
UNSUPPORTED(aclmdlRICondHandleGetCondPtr)

/* The collectives of CANN. torch.distributed's backend "hccl" does not come here: it runs over gloo. */
UNSUPPORTED(HcclAllGather)
UNSUPPORTED(HcclAllReduce)
UNSUPPORTED(HcclBatchSendRecv)
UNSUPPORTED(HcclBroadcast)
UNSUPPORTED(HcclCommDestroy)
UNSUPPORTED(HcclCommInitAll)
UNSUPPORTED(HcclCommInitRootInfo)
UNSUPPORTED(HcclGetRootInfo)
UNSUPPORTED(HcclRecv)
UNSUPPORTED(HcclReduce)
UNSUPPORTED(HcclReduceScatter)
UNSUPPORTED(HcclScatter)
UNSUPPORTED(HcclSend)

/* Settings of a library that nobody calls. */
DESCRIBES_AN_OPERATOR(HcclSetConfig)
