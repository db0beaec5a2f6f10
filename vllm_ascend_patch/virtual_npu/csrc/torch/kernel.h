// SPDX-License-Identifier: Apache-2.0
//
// The one kernel behind every aten operator of the virtual NPU, and its registration.
#pragma once

#include <string>
#include <vector>

namespace virtual_npu {

// Replace torch_npu's kernels for aten operators on the device by CPU kernels on aliased memory. Once per process, after
// torch_npu was imported. Returns the names of the operators that were replaced.
std::vector<std::string> install_kernels();

} // namespace virtual_npu
