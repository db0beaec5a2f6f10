// SPDX-License-Identifier: Apache-2.0
//
// See hccl_work.h.
#include "hccl_work.h"

#include <algorithm>

namespace virtual_npu {

CollectiveWork::CollectiveWork(
    int rank, c10d::OpType type, Tensors outputs, Milliseconds timeout, std::optional<Ordered> ordered)
    : Work(rank, type),
      outputs_(std::move(outputs)),
      timeout_(timeout),
      ordered_(std::move(ordered)),
      future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}

void CollectiveWork::complete(std::exception_ptr error) {
  if (error) {
    future_->setErrorIfNeeded(error);
  } else {
    future_->markCompleted(c10::IValue(outputs_));
  }
  finish(std::move(error));
}

bool CollectiveWork::isCompleted() {
  const bool completed = Work::isCompleted();
  if (completed && ordered_) {
    order::host_waits(ordered_->done);
  }
  return completed;
}

bool CollectiveWork::wait(Milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  // The exchange itself ends within its own time limit; the margin lets its better message arrive first.
  const Milliseconds limit = timeout == kNoTimeout ? timeout_ + Milliseconds(10000) : timeout;
  TORCH_CHECK_WITH(
      DistBackendError,
      cv_.wait_for(lock, limit, [&] { return completed_; }),
      "hccl ",
      c10d::opTypeToString(opType_),
      " on rank ",
      rank_,
      " was not finished within ",
      static_cast<double>(limit.count()) / 1000.0,
      " s");
  if (exception_) {
    std::rethrow_exception(exception_);
  }
  lock.unlock();
  if (ordered_) { // the current stream waits; only a barrier makes the host wait too
    order::stream_waits(ordered_->device, ordered_->done);
    if (opType_ == c10d::OpType::BARRIER) {
      order::host_waits(ordered_->done);
    }
  }
  return true;
}

CoalescedWork::CoalescedWork(int rank, std::vector<WorkPtr> works)
    : Work(rank, c10d::OpType::COALESCED), works_(std::move(works)) {}

bool CoalescedWork::isCompleted() {
  return std::all_of(works_.begin(), works_.end(), [](const WorkPtr& work) { return work->isCompleted(); });
}

bool CoalescedWork::wait(Milliseconds timeout) {
  for (const WorkPtr& work : works_) {
    work->wait(timeout);
  }
  return true;
}

std::vector<at::Tensor> CoalescedWork::result() {
  Tensors all;
  for (const WorkPtr& work : works_) {
    const Tensors some = work->result();
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

c10::intrusive_ptr<c10::ivalue::Future> CoalescedWork::getFuture() {
  wait(kNoTimeout);
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  future->markCompleted(c10::IValue(result()));
  return future;
}

} // namespace virtual_npu
