// SPDX-License-Identifier: Apache-2.0
//
// See alias.h.
#include "alias.h"

#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <algorithm>

#include "allocator.h"
#include "torch_npu/csrc/core/NPUStorageImpl.h"

namespace virtual_npu {
namespace {

// What a CPU kernel must see of an NPU tensor beyond its memory.
constexpr c10::DispatchKeySet kLazyBits({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

void keep_memory(void*) {}

void release_storage(void* storage) {
  c10::raw::intrusive_ptr::decref(static_cast<c10::StorageImpl*>(storage));
}

void copy_geometry(c10::TensorImpl* to, const c10::TensorImpl* from) {
  to->set_sizes_and_strides(from->sizes(), from->strides(), from->storage_offset());
}

bool same_geometry(const c10::TensorImpl* a, const c10::TensorImpl* b) {
  return a->storage_offset() == b->storage_offset() && a->sizes() == b->sizes() && a->strides() == b->strides();
}

void copy_lazy_bits(const at::Tensor& to, const at::Tensor& from) {
  if (!(from.key_set() & kLazyBits).empty()) {
    to._set_conj(from.is_conj());
    to._set_neg(from.is_neg());
  }
}

// torch_npu keeps a second description of every tensor in its storage and consults it in its own operators.
void describe(c10::StorageImpl* storage, const c10::TensorImpl* tensor) {
  auto& description = static_cast<torch_npu::NPUStorageImpl*>(storage)->npu_desc_;
  const auto sizes = tensor->sizes();
  const auto strides = tensor->strides();
  description.base_sizes_.assign(sizes.begin(), sizes.end());
  description.base_strides_.assign(strides.begin(), strides.end());
  description.storage_sizes_.assign(sizes.begin(), sizes.end());
  description.origin_format_ = ACL_FORMAT_ND;
  description.npu_format_ = ACL_FORMAT_ND;
  description.data_type_ = tensor->dtype();
}

// Device memory with the bytes of a CPU storage: taken over if the kernel got it from the device, else copied.
c10::DataPtr to_device_memory(c10::StorageImpl* cpu, bool exclusive, c10::Device device) {
  if (exclusive && is_device_memory(cpu->data_ptr())) {
    c10::DataPtr memory = cpu->set_data_ptr(c10::DataPtr());
    void* data = memory.get();
    const auto deleter = memory.get_deleter();
    return {data, memory.release_context(), deleter, device};
  }
  c10::DataPtr memory = c10::GetAllocator(kNPU)->allocate(cpu->nbytes());
  if (cpu->nbytes() != 0) {
    std::memcpy(memory.mutable_get(), cpu->data(), cpu->nbytes());
  }
  return memory;
}

} // namespace

at::Tensor owning_alias(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) {
    return tensor.detach();
  }
  TORCH_CHECK(tensor.device().type() == kNPU, "expected a tensor on cpu or npu, not on ", tensor.device());
  AliasTable table;
  at::Tensor alias = table.alias(tensor.detach());
  // The table's aliases live for one call only; this one takes a share of the device's memory.
  c10::StorageImpl* npu = tensor.storage().unsafeGetStorageImpl();
  c10::raw::intrusive_ptr::incref(npu);
  alias.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(
      c10::DataPtr(npu->mutable_data(), npu, &release_storage, c10::DeviceType::CPU));
  return alias;
}

at::Tensor borrowed_alias(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) {
    return tensor.detach();
  }
  AliasTable table;
  return table.alias(tensor.detach());
}

bool AliasTable::has_storage_of(const at::Tensor& cpu) const {
  const c10::StorageImpl* storage = cpu.has_storage() ? cpu.storage().unsafeGetStorageImpl() : nullptr;
  return std::any_of(storages_.begin(), storages_.end(), [&](const auto& known) { return known.cpu.get() == storage; });
}

c10::intrusive_ptr<c10::StorageImpl> AliasTable::alias_storage(const c10::Storage& npu) {
  c10::StorageImpl* impl = npu.unsafeGetStorageImpl();
  for (const auto& known : storages_) {
    if (known.npu == impl) {
      return known.cpu;
    }
  }
  void* data = impl->mutable_data();
  auto cpu = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(),
      impl->nbytes(),
      c10::DataPtr(data, data, &keep_memory, c10::DeviceType::CPU),
      c10::GetCPUAllocator(),
      impl->resizable());
  storages_.push_back({impl, cpu, data, impl->nbytes()});
  return cpu;
}

at::Tensor AliasTable::alias(const at::Tensor& npu) {
  const c10::TensorImpl* impl = npu.unsafeGetTensorImpl();
  for (const auto& known : tensors_) {
    if (known.npu.unsafeGetTensorImpl() == impl) {
      return known.cpu;
    }
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      impl->has_storage() && npu.layout() == c10::kStrided,
      "the virtual NPU computes on strided tensors only, not on ",
      npu.layout());
  at::Tensor cpu = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(alias_storage(impl->storage())), c10::DispatchKeySet(c10::DispatchKey::CPU), impl->dtype());
  copy_geometry(cpu.unsafeGetTensorImpl(), impl);
  copy_lazy_bits(cpu, npu);
  if (impl->is_wrapped_number()) {
    cpu.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  tensors_.push_back({npu, cpu});
  return cpu;
}

void AliasTable::write_back(c10::Device device) {
  for (auto& known : storages_) {
    if (known.cpu->nbytes() == known.bytes && known.cpu->data() == known.data) {
      continue;
    }
    const size_t bytes = known.cpu->nbytes();
    known.npu->set_data_ptr_noswap(to_device_memory(known.cpu.get(), /*exclusive=*/true, device));
    known.npu->set_nbytes(bytes);
    // A result may still be a view of this alias: keep its memory reachable.
    void* data = known.npu->mutable_data();
    known.cpu->set_data_ptr_noswap(c10::DataPtr(data, data, &keep_memory, c10::DeviceType::CPU));
    known.data = data;
    known.bytes = bytes;
  }
  for (const auto& known : tensors_) {
    c10::TensorImpl* npu = known.npu.unsafeGetTensorImpl();
    const c10::TensorImpl* cpu = known.cpu.unsafeGetTensorImpl();
    if (!same_geometry(npu, cpu)) {
      copy_geometry(npu, cpu);
      describe(npu->unsafe_storage().unsafeGetStorageImpl(), npu);
    }
  }
}

void AliasTable::expect(const at::Tensor& result) {
  if (!result.defined() || !result.has_storage()) {
    return;
  }
  c10::StorageImpl* storage = result.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  for (auto& known : results_) {
    if (known.cpu == storage) {
      ++known.tensors;
      return;
    }
  }
  results_.push_back({storage, 1, nullptr});
}

at::Tensor AliasTable::wrap(const at::Tensor& result, c10::Device device) {
  if (!result.defined() || !result.device().is_cpu()) {
    return result;
  }
  const c10::TensorImpl* cpu = result.unsafeGetTensorImpl();
  for (const auto& known : tensors_) {
    if (known.cpu.unsafeGetTensorImpl() == cpu) {
      return known.npu;
    }
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      cpu->has_storage() && result.layout() == c10::kStrided,
      "the virtual NPU has strided tensors only; the operator returned a tensor of layout ",
      result.layout());
  c10::StorageImpl* storage = cpu->unsafe_storage().unsafeGetStorageImpl();
  c10::intrusive_ptr<c10::StorageImpl> npu_storage;
  for (const auto& known : storages_) {
    if (known.cpu.get() == storage) {
      npu_storage = c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(known.npu);
    }
  }
  bool fresh = false;
  if (!npu_storage) {
    Result* entry = nullptr;
    for (auto& known : results_) {
      entry = known.cpu == storage ? &known : entry;
    }
    if (entry != nullptr && entry->npu) {
      npu_storage = entry->npu;
    } else {
      const size_t bytes = storage->nbytes();
      const bool exclusive = entry != nullptr && cpu->unsafe_storage().use_count() == entry->tensors;
      static const auto create = c10::GetStorageImplCreate(kNPU);
      npu_storage = create(
          c10::StorageImpl::use_byte_size_t(),
          c10::SymInt(static_cast<int64_t>(bytes)),
          to_device_memory(storage, exclusive, device),
          c10::GetAllocator(kNPU),
          true);
      if (entry != nullptr) {
        entry->npu = npu_storage;
      }
      fresh = true;
    }
  }
  at::Tensor npu = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(npu_storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), cpu->dtype());
  copy_geometry(npu.unsafeGetTensorImpl(), cpu);
  copy_lazy_bits(npu, result);
  if (fresh) {
    describe(npu_storage.get(), npu.unsafeGetTensorImpl());
  }
  return npu;
}

} // namespace virtual_npu
