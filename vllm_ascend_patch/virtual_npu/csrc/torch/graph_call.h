// SPDX-License-Identifier: Apache-2.0
//
// One aten operator call as a graph keeps it: the arguments as CPU tensors over the same device memory, which the call
// does not keep alive (a graph's pool does), and where the results have to go at every replay.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <vector>

#include "alias.h"
#include "graph.h"
#include "random.h"

namespace virtual_npu {

class GraphCall {
 public:
  // `arguments`: the operator's arguments with aliases in the place of NPU tensors. `written`: which of them it writes.
  GraphCall(
      const c10::OperatorHandle& op,
      torch::jit::Stack arguments,
      const std::vector<bool>& written,
      const AliasTable& aliases);

  // The operator draws random numbers: argument `generator` (below 0: the CPU's default one) follows from `seed`.
  void draws(int generator, CapturedSeed seed);

  // The results without running: what the schema says is an argument. Empty if a result would be new memory.
  std::optional<torch::jit::Stack> results_among(const torch::jit::Stack& arguments) const;

  // Bytes of the largest argument that the call writes.
  size_t largest_write() const;

  // Keep the content of what the call is about to write.
  void save_writes(const GraphStream& stream) const;

  // After the call ran: `host` are its results as the kernel returned them, `device` the same as NPU tensors.
  void expect(const std::vector<at::Tensor>& host, const std::vector<at::Tensor>& device, const AliasTable& aliases);

  // Hand the call over to the graph, with what it touches where order is checked.
  void commit(const GraphStream& stream, order::CapturedPtr order) &&;

 private:
  struct Target {
    size_t result;
    void* memory;
    size_t bytes;
  };

  void run() const;

  c10::OperatorHandle op_;
  torch::jit::Stack arguments_;
  // A value on the host as the caller's memory holds it, and as it was when the call was captured.
  struct HostValue {
    size_t argument;
    at::Tensor callers;
    at::Tensor captured;
  };

  std::vector<at::Tensor> writes_;
  std::vector<HostValue> host_values_;
  std::vector<Target> targets_;
  int generator_ = -1;
  std::optional<CapturedSeed> seed_;
};

// All tensors in `values`, in order; undefined ones too.
std::vector<at::Tensor> tensors_in(const torch::jit::Stack& values, size_t first);

} // namespace virtual_npu
