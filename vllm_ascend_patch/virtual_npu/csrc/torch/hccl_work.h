// SPDX-License-Identifier: Apache-2.0
//
// What a collective returns to its caller: the work of one call, and several works that count as one.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <optional>

#include "hccl_wire.h"
#include "order.h"

namespace virtual_npu {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// Where order is checked: the point at which a collective is done, on the stream that it has for itself.
struct Ordered {
  c10::Device device;
  order::Stamp done;
};

class CollectiveWork final : public c10d::Work {
 public:
  CollectiveWork(
      int rank, c10d::OpType type, Tensors outputs, Milliseconds timeout, std::optional<Ordered> ordered);

  bool ordered() const { return ordered_.has_value(); }

  // The call is over, with `error` or without. Called once.
  void complete(std::exception_ptr error);

  bool isCompleted() override;
  bool wait(Milliseconds timeout) override;
  void synchronize() override { wait(kNoTimeout); }
  void blockCurrentStream() { wait(kNoTimeout); } // overrides from PyTorch 2.8 on
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  const Tensors outputs_;
  const Milliseconds timeout_;
  const std::optional<Ordered> ordered_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
};

class CoalescedWork final : public c10d::Work {
 public:
  CoalescedWork(int rank, std::vector<WorkPtr> works);

  bool isCompleted() override;
  bool wait(Milliseconds timeout) override;
  std::vector<at::Tensor> result() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

 private:
  const std::vector<WorkPtr> works_;
};

} // namespace virtual_npu
