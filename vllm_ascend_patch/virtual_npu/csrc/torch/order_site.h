// SPDX-License-Identifier: Apache-2.0
//
// Where in a Python program a call was made, as a number that costs little to take and can be resolved later. What the
// number is used for is not known here.
#pragma once

#include <cstdint>
#include <string>

namespace virtual_npu::order {

// The innermost frame of this thread outside of torch, torch_npu and the virtual NPU; with `stack` all of its frames.
// Takes the GIL: not to be called with a lock that a thread with the GIL may wait for.
uint32_t call_site(bool stack);

// "file.py:12 in function", with a stack one such line per frame, the innermost first.
std::string describe_site(uint32_t site);

} // namespace virtual_npu::order
