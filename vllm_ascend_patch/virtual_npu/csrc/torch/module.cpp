// SPDX-License-Identifier: Apache-2.0
//
// The Python module `_virtual_npu`: installation, and the alias for kernels written in Python.
#include <torch/csrc/utils/pybind.h>

#include "alias.h"
#include "allocator.h"
#include "kernel.h"

namespace virtual_npu {
namespace {

void keep_storage(void* storage) {
  c10::raw::intrusive_ptr::decref(static_cast<c10::StorageImpl*>(storage));
}

at::Tensor alias_cpu(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) {
    return tensor;
  }
  TORCH_CHECK(tensor.device().type() == kNPU, "alias_cpu takes tensors on cpu or npu, not on ", tensor.device());
  AliasTable table;
  at::Tensor alias = table.alias(tensor.detach());
  // The table's aliases live for one call only; this one keeps the device's memory for as long as it is used.
  c10::StorageImpl* npu = tensor.storage().unsafeGetStorageImpl();
  c10::raw::intrusive_ptr::incref(npu);
  alias.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(
      c10::DataPtr(npu->mutable_data(), npu, &keep_storage, c10::DeviceType::CPU));
  return alias;
}

} // namespace
} // namespace virtual_npu

PYBIND11_MODULE(_virtual_npu, module) {
  module.def("install_allocator", &virtual_npu::install_allocator);
  module.def("install_kernels", &virtual_npu::install_kernels);
  module.def("alias_cpu", &virtual_npu::alias_cpu);
}
