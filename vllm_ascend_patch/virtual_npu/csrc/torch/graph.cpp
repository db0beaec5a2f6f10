// SPDX-License-Identifier: Apache-2.0
//
// See graph.h.
#include "graph.h"

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <stdexcept>

#include "../cann/virtual_graph.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

extern "C" const char* aclGetRecentErrMsg(); // csrc/cann/runtime.c

namespace virtual_npu {
namespace {

int run(void* payload) {
  // A device replays a graph without the host's operators: no Python dispatch mode sees its calls.
  const c10::impl::ExcludeDispatchKeyGuard unobserved(c10::python_ks);
  try {
    (*static_cast<std::function<void()>*>(payload))();
    return 0;
  } catch (const c10::Error& error) {
    return virtual_graph_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return virtual_graph_error(error.what());
  }
}

std::string last_error() {
  const char* message = aclGetRecentErrMsg();
  return message != nullptr ? message : "the virtual NPU could not record the call";
}

void drop(void* payload) {
  delete static_cast<std::function<void()>*>(payload);
}

} // namespace

GraphStream::GraphStream(c10::Device device) {
  if (virtual_graph_busy() != 0) {
    stream_ = c10_npu::getCurrentNPUStream(device.index()).stream(false);
    state_ = virtual_graph_state(stream_);
  }
}

void GraphStream::add(const std::string& name, std::function<void()> call, order::CapturedPtr order) const {
  if (order) {
    call = [call = std::move(call), order = std::move(order)] {
      order::replay(*order);
      call();
    };
  }
  const virtual_call recorded{name.c_str(), &run, &drop, new std::function<void()>(std::move(call))};
  TORCH_CHECK(virtual_graph_add(stream_, &recorded) == 0, last_error());
}

void GraphStream::save(const at::Tensor& tensor) const {
  if (tensor.defined() && tensor.numel() != 0) {
    TORCH_CHECK(virtual_graph_save(stream_, tensor.mutable_data_ptr(), span_of(tensor)) == 0, last_error());
  }
}

void GraphStream::poison(void* memory, size_t bytes) const {
  TORCH_CHECK(virtual_graph_poison(stream_, memory, bytes) == 0, last_error());
}

void GraphStream::refuse(const std::string& call, const std::string& why) const {
  const std::string message = updates() ? c10::str(call, " cannot update a graph's task group: ", why)
                                        : c10::str(call, " cannot be captured into a graph: ", why);
  virtual_graph_invalidate(stream_, message.c_str());
  TORCH_CHECK(false, message);
}

void host_reads(c10::Device device) {
  virtual_graph_host_reads(c10_npu::getCurrentNPUStream(device.index()).stream(false));
}

size_t span_of(const at::Tensor& tensor) {
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    last += (tensor.size(i) - 1) * tensor.stride(i);
  }
  return tensor.numel() == 0 ? 0 : static_cast<size_t>(last + 1) * tensor.element_size();
}

} // namespace virtual_npu
