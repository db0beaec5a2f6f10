// SPDX-License-Identifier: Apache-2.0
//
// Zeroes large tensors by giving their pages back to the host, so that a KV cache that nobody has written to costs no
// memory, however large the virtual device is.
#pragma once

#include <ATen/core/Tensor.h>

namespace virtual_npu {

// Zero `tensor` that way. Returns false, having done nothing, if it is not one large block of device memory.
bool zero_pages(const at::Tensor& tensor);

} // namespace virtual_npu
