// SPDX-License-Identifier: Apache-2.0
//
// Recording of calls into the graph that a stream is captured into: the way from tensors and exceptions to the runtime's
// plain calls (csrc/cann/virtual_graph.h). What is recorded is graph_call.h's, the collectives' and Python's business.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "order.h"

namespace virtual_npu {

// The current stream of a device, and what a call on it does now.
class GraphStream {
 public:
  GraphStream() = default; // none: nothing is captured
  explicit GraphStream(c10::Device device);

  bool runs() const { return state_ == 0; }
  bool captures() const { return state_ == 1; }
  bool updates() const { return state_ == 2; }

  // Record `run`; it is called at every replay. May raise there. `order`: what it touches, where order is checked.
  void add(const std::string& name, std::function<void()> run, order::CapturedPtr order) const;

  // See virtual_graph.h. `tensor` is on a host or an NPU.
  void save(const at::Tensor& tensor) const;
  void poison(void* memory, size_t bytes) const;

  // Raise an error that names `call`, after which the capture gives no graph.
  [[noreturn]] void refuse(const std::string& call, const std::string& why) const;

 private:
  void* stream_ = nullptr;
  int state_ = 0;
};

// Above this size, memory that a captured call only writes into is left alone instead of being written and restored.
inline constexpr size_t kLargestSave = size_t{64} << 20;

// The host has waited for what `device`'s current stream computes.
void host_reads(c10::Device device);

// Bytes from the first to the last element of `tensor`.
size_t span_of(const at::Tensor& tensor);

} // namespace virtual_npu
