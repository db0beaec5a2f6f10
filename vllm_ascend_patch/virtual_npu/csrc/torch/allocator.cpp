// SPDX-License-Identifier: Apache-2.0
//
// See allocator.h.
#include "allocator.h"

#include <c10/core/CPUAllocator.h>

#include <cstring>

#include "alias.h"

extern "C" int aclrtPointerGetAttributes(const void* pointer, uint32_t* attributes); // csrc/cann/memory.c

namespace virtual_npu {
namespace {

thread_local bool allocate_on_device = false;

// The deleter of the device's memory; all of its blocks have the same one.
c10::DeleterFnPtr device_deleter = nullptr;

c10::DeleterFnPtr host_deleter = nullptr;

void free_anywhere(void* data) {
  uint32_t attributes[7];
  constexpr uint32_t kDevice = 1; // acl/acl_rt.h: ACL_MEM_LOCATION_TYPE_DEVICE
  aclrtPointerGetAttributes(data, attributes);
  (attributes[1] == kDevice ? device_deleter : host_deleter)(data);
}

class Allocator final : public c10::Allocator {
 public:
  explicit Allocator(c10::Allocator* host) : host_(host) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (!allocate_on_device || bytes == 0) {
      return host_->allocate(bytes);
    }
    c10::DataPtr memory = c10::GetAllocator(kNPU)->allocate(bytes);
    device_deleter = memory.get_deleter();
    void* data = memory.get();
    return {data, memory.release_context(), device_deleter, c10::DeviceType::CPU};
  }

  // Libraries with scratch memory (oneDNN) allocate in one operator and may free in another, with a deleter that knows
  // the address only.
  c10::DeleterFnPtr raw_deleter() const override {
    host_deleter = host_->raw_deleter();
    return &free_anywhere;
  }

  void copy_data(void* destination, const void* source, size_t count) const override {
    std::memcpy(destination, source, count);
  }

 private:
  c10::Allocator* host_;
};

} // namespace

AllocateOnDevice::AllocateOnDevice(bool enable) : previous_(allocate_on_device) {
  allocate_on_device = enable;
}

AllocateOnDevice::~AllocateOnDevice() {
  allocate_on_device = previous_;
}

bool is_device_memory(const c10::DataPtr& memory) {
  return device_deleter != nullptr && memory.get_deleter() == device_deleter;
}

void install_allocator() {
  static Allocator allocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, /*priority=*/0);
}

} // namespace virtual_npu
