// SPDX-License-Identifier: Apache-2.0
//
// The process group behind torch.distributed's backend "hccl": collectives made of exchanges of bytes, in the order in
// which they were called, finished when they are waited for. The collectives are in hccl_collectives.cpp; how bytes travel is
// in hccl_wire.h.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "graph.h"
#include "hccl_wire.h"
#include "hccl_work.h"

namespace virtual_npu {

class HcclBackend final : public c10d::Backend {
 public:
  HcclBackend(
      c10::intrusive_ptr<c10d::Backend> links,
      int rank,
      int size,
      Milliseconds timeout,
      std::string communicator,
      std::vector<int64_t> global_ranks,
      c10::intrusive_ptr<Options> options);
  ~HcclBackend() override;

  const std::string getBackendName() const override { return "hccl"; }
  const std::string& communicator() const { return communicator_; }
  c10::intrusive_ptr<Options> options() const { return options_; }
  void set_timeout(Milliseconds timeout) { timeout_ = timeout; }
  bool closed() const { return closed_; }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  WorkPtr allgather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_coalesced(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_into_tensor_coalesced(
      Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override;
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override;
  WorkPtr reduce_scatter(
      Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& options) override;
  WorkPtr _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override;
  WorkPtr reduce_scatter_tensor_coalesced(
      Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& options) override;
  WorkPtr alltoall_base(
      at::Tensor& output,
      at::Tensor& input,
      std::vector<int64_t>& output_splits,
      std::vector<int64_t>& input_splits,
      const c10d::AllToAllOptions& options) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  WorkPtr barrier(const c10d::BarrierOptions& options) override;
  WorkPtr send(Tensors& tensors, int destination, int tag) override;
  WorkPtr recv(Tensors& tensors, int source, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;

  // torch_npu's own extensions: splits count elements along the first dimension.
  WorkPtr allgather_uneven(const at::Tensor& output, const at::Tensor& input, std::vector<int64_t> output_splits);
  WorkPtr reduce_scatter_uneven(
      const at::Tensor& output,
      const at::Tensor& input,
      std::vector<int64_t> input_splits,
      const c10d::ReduceScatterOptions& options);

  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override;
  WorkPtr endCoalescing() override;

  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }
  void abort() override;
  void shutdown() override { abort(); }

 private:
  using Job = std::function<void(Milliseconds timeout)>;

  // Run `job` after everything that was called before: in this thread and to its end, or in the group's own thread.
  template <typename CallOptions>
  WorkPtr call(c10d::OpType type, const CallOptions& options, const Tensors& inputs, Tensors outputs, Job job) {
    bool async = true; // PyTorch 2.7 does not say; waiting for the group's thread is right for both
    if constexpr (requires { options.asyncOp; }) {
      async = options.asyncOp;
    }
    return call(type, options.timeout, async, inputs, std::move(outputs), std::move(job));
  }
  WorkPtr call(
      c10d::OpType type, Milliseconds timeout, bool async, const Tensors& inputs, Tensors outputs, Job job);
  void serve();
  void run_in_turn(const std::function<void()>& run);

  // The call happens on a stream that is captured: `job` runs again at every replay of the graph.
  void record(
      const GraphStream& graph,
      c10d::OpType type,
      Milliseconds timeout,
      const Tensors& inputs,
      const Tensors& outputs,
      const Job& job);

  Job allreduce_job(const at::Tensor& tensor, const c10d::ReduceOp& op) const;
  Job allgather_job(const std::string& name, Tensors outputs, const at::Tensor& input) const;
  Job reduce_scatter_job(const at::Tensor& output, Tensors inputs, const c10d::ReduceOp& op) const;

  const std::shared_ptr<Wire> wire_;
  Milliseconds timeout_;
  const std::string communicator_;
  const c10::intrusive_ptr<Options> options_;
  uint64_t sequence_ = 0;
  std::atomic<bool> closed_{false};

  std::optional<std::vector<WorkPtr>> coalescing_;

  std::mutex mutex_; // guards the queue
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool running_ = false;
  std::thread thread_;
};

} // namespace virtual_npu
