// SPDX-License-Identifier: Apache-2.0
//
// Lets CPU kernels allocate device memory, so that results need no copy and every byte of an operator is counted, and
// refused, by torch_npu's own caching allocator.
#pragma once

#include <c10/core/Allocator.h>

namespace virtual_npu {

// While one of these lives, CPU tensors made by this thread get the memory of the current NPU.
class AllocateOnDevice {
 public:
  explicit AllocateOnDevice(bool enable);
  ~AllocateOnDevice();
  AllocateOnDevice(const AllocateOnDevice&) = delete;
  AllocateOnDevice& operator=(const AllocateOnDevice&) = delete;

 private:
  bool previous_;
};

// Whether `memory` came from the device through the class above.
bool is_device_memory(const c10::DataPtr& memory);

// Put our allocator in front of the CPU's. Once per process.
void install_allocator();

} // namespace virtual_npu
