// SPDX-License-Identifier: Apache-2.0
//
// What a collective returns to its caller: the work of one call, and several works that count as one.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "hccl_wire.h"

namespace virtual_npu {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

class CollectiveWork final : public c10d::Work {
 public:
  CollectiveWork(int rank, c10d::OpType type, Tensors outputs, Milliseconds timeout);

  // The call is over, with `error` or without. Called once.
  void complete(std::exception_ptr error);

  bool wait(Milliseconds timeout) override;
  void synchronize() override { wait(kNoTimeout); }
  void blockCurrentStream() { wait(kNoTimeout); } // overrides from PyTorch 2.8 on
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  const Tensors outputs_;
  const Milliseconds timeout_;
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
