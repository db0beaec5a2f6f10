// SPDX-License-Identifier: Apache-2.0
//
// Two views of one memory: NPU tensors as CPU tensors and back, without copies. What runs on the views is not known
// here.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/util/SmallVector.h>

namespace virtual_npu {

inline constexpr c10::DeviceType kNPU = c10::DeviceType::PrivateUse1;

// A CPU tensor over the memory of `tensor` (on a host or an NPU) that keeps the memory alive.
at::Tensor owning_alias(const at::Tensor& tensor);

// The same without keeping the memory alive: for calls that a graph replays on memory that its pool owns.
at::Tensor borrowed_alias(const at::Tensor& tensor);

// The aliases made for one operator call, with the way back.
class AliasTable {
 public:
  // A CPU tensor over the memory of the NPU tensor `npu`. Tensors that share a storage get aliases that share one.
  at::Tensor alias(const at::Tensor& npu);

  // Carry what a kernel did to the sizes or the memory of the aliases (out= that had to be resized) back to the NPU
  // tensors. `device` owns the new memory.
  void write_back(c10::Device device);

  // Announce a result, so that `wrap` knows how many results share its memory.
  void expect(const at::Tensor& result);

  // The NPU tensor for a CPU tensor that a kernel returned: the original argument if it is an alias, a view of its
  // storage if it shares an alias's memory, else a new tensor that takes over the memory.
  at::Tensor wrap(const at::Tensor& result, c10::Device device);

  // Whether `cpu` lies in the memory of an argument, as an alias or a view of one.
  bool has_storage_of(const at::Tensor& cpu) const;

 private:
  struct AliasedStorage {
    c10::StorageImpl* npu;
    c10::intrusive_ptr<c10::StorageImpl> cpu;
    void* data;
    size_t bytes;
  };
  struct AliasedTensor {
    at::Tensor npu;
    at::Tensor cpu;
  };
  struct Result {
    c10::StorageImpl* cpu;
    size_t tensors;
    c10::intrusive_ptr<c10::StorageImpl> npu;
  };

  c10::intrusive_ptr<c10::StorageImpl> alias_storage(const c10::Storage& npu);

  c10::SmallVector<AliasedTensor, 6> tensors_;
  c10::SmallVector<AliasedStorage, 6> storages_;
  c10::SmallVector<Result, 4> results_;
};

} // namespace virtual_npu
