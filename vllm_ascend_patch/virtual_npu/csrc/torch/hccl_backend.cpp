// SPDX-License-Identifier: Apache-2.0
//
// See hccl_backend.h: the life of a group, the order of its calls, and messages between two ranks.
#include "hccl_backend.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceGuard.h>

#include <cstdlib>

#include "alias.h"

namespace virtual_npu {
namespace {

// HCCL's own limit, in seconds, for ranks to arrive and finish, if it is shorter than the group's.
Milliseconds limited(Milliseconds timeout) {
  const char* seconds = std::getenv("HCCL_EXEC_TIMEOUT");
  const long limit = seconds != nullptr ? std::atol(seconds) : 0;
  return limit > 0 ? std::min(timeout, Milliseconds(limit * 1000)) : timeout;
}

const at::Tensor& single(const Tensors& tensors) {
  TORCH_CHECK(tensors.size() == 1, "hccl takes one tensor per rank, not ", tensors.size());
  return tensors.front();
}

// The stream on which the caller sees these tensors change; without tensors, the current device's. None for host tensors.
GraphStream stream_of(const Tensors& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.device().type() == kNPU) {
      return GraphStream(tensor.device());
    }
  }
  return tensors.empty() ? GraphStream(c10::impl::getDeviceGuardImpl(kNPU)->getDevice()) : GraphStream();
}

std::string name_of(c10d::OpType type) {
  return "hccl " + c10d::opTypeToString(type);
}

// The NPU that a collective runs on; without tensors, the current one. None for host tensors.
std::optional<c10::Device> device_of(const Tensors& inputs, const Tensors& outputs) {
  for (const Tensors& tensors : {outputs, inputs}) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.device().type() == kNPU) {
        return tensor.device();
      }
    }
  }
  return inputs.empty() && outputs.empty() ? std::optional(c10::impl::getDeviceGuardImpl(kNPU)->getDevice()) : std::nullopt;
}

void refuse_in_graph(const Tensors& tensors, const char* call) {
  const GraphStream graph = stream_of(tensors);
  if (!graph.runs()) {
    graph.refuse(call, "messages between two ranks are not supported there");
  }
}

} // namespace

HcclBackend::HcclBackend(
    c10::intrusive_ptr<c10d::Backend> links,
    int rank,
    int size,
    Milliseconds timeout,
    std::string communicator,
    std::vector<int64_t> global_ranks,
    c10::intrusive_ptr<Options> options)
    : Backend(rank, size),
      wire_(std::make_shared<Wire>(std::move(links), rank, size, std::move(global_ranks))),
      timeout_(timeout),
      communicator_(std::move(communicator)),
      options_(std::move(options)) {
  if (order::enabled()) {
    order::join_communicator(communicator_);
  }
}

HcclBackend::~HcclBackend() {
  abort();
}

void HcclBackend::abort() {
  closed_ = true;
  if (order::enabled()) {
    order::leave_communicator(communicator_);
  }
  wire_->abort();
  std::thread thread;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    thread = std::move(thread_);
  }
  changed_.notify_all();
  if (thread.joinable()) {
    if (thread.get_id() == std::this_thread::get_id()) {
      thread.detach(); // the last reference went away in the group's own thread
    } else {
      thread.join();
    }
  }
}

// Order ---------------------------------------------------------------------------------------------------------------

WorkPtr HcclBackend::call(
    c10d::OpType type, Milliseconds timeout, bool async, const Tensors& inputs, Tensors outputs, Job job) {
  timeout = limited(timeout == c10d::kUnsetTimeout ? timeout_ : timeout);
  const GraphStream graph = stream_of(outputs);
  if (!graph.runs()) {
    record(graph, type, timeout, inputs, outputs, job);
    async = false;
  }
  std::optional<Ordered> ordered;
  if (const auto device = order::enabled() && graph.runs() ? device_of(inputs, outputs) : std::nullopt) {
    ordered = Ordered{*device, order::collective(name_of(type), *device, communicator_, inputs, outputs)};
  }
  auto work = c10::make_intrusive<CollectiveWork>(rank_, type, std::move(outputs), timeout, std::move(ordered));
  ++sequence_;
  auto calls = work->ordered() ? order::calls_so_far() : std::vector<order::Calls>();
  const auto run = [work, job = std::move(job), timeout, wire = wire_, calls = std::move(calls)] {
    std::exception_ptr error;
    try {
      wire->called_before(calls);
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      job(timeout);
    } catch (...) {
      error = std::current_exception();
    }
    work->complete(error);
  };
  std::unique_lock<std::mutex> lock(mutex_);
  if (async || coalescing_) {
    TORCH_CHECK(!closed_, "hccl: this group was shut down");
    queue_.emplace_back(run);
    if (!thread_.joinable()) {
      thread_ = std::thread([this] { serve(); });
    }
    changed_.notify_all();
    if (coalescing_) {
      coalescing_->push_back(work);
    }
    return work;
  }
  lock.unlock();
  run_in_turn(run);
  work->wait(timeout); // raises what went wrong
  return work;
}

void HcclBackend::run_in_turn(const std::function<void()>& run) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return (queue_.empty() && !running_) || closed_; });
  running_ = true;
  lock.unlock();
  run();
  lock.lock();
  running_ = false;
  changed_.notify_all();
}

void HcclBackend::record(
    const GraphStream& graph,
    c10d::OpType type,
    Milliseconds timeout,
    const Tensors& inputs,
    const Tensors& outputs,
    const Job& job) {
  const std::string name = name_of(type);
  if (graph.updates() || coalescing_ || outputs.empty()) {
    graph.refuse(name, outputs.empty() ? "the host waits for it" : "only single collectives of a capture are supported");
  }
  for (const at::Tensor& output : outputs) {
    graph.save(output);
  }
  order::CapturedPtr captured;
  if (order::enabled()) {
    order::Launch launch(name, outputs.front().device());
    for (const at::Tensor& input : inputs) {
      launch.read(input);
    }
    for (const at::Tensor& output : outputs) {
      launch.write(output);
    }
    launch.communicate(communicator_);
    launch.commit();
    captured = launch.captured();
  }
  const auto self = c10::weak_intrusive_ptr<HcclBackend>(c10::intrusive_ptr<HcclBackend>::reclaim_copy(this));
  graph.add(name, [self, job, timeout] {
    const auto backend = self.lock();
    TORCH_CHECK(backend && !backend->closed_, "the process group was shut down");
    ++backend->sequence_;
    std::exception_ptr error;
    backend->run_in_turn([&] {
      try {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        job(timeout);
      } catch (...) {
        error = std::current_exception();
      }
    });
    if (error) {
      std::rethrow_exception(error);
    }
  }, std::move(captured));
}

void HcclBackend::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return (!queue_.empty() && !running_) || (closed_ && queue_.empty()); });
    if (queue_.empty()) {
      return;
    }
    auto run = std::move(queue_.front());
    queue_.pop_front();
    running_ = true;
    lock.unlock();
    run();
    run = nullptr;
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

void HcclBackend::startCoalescing() {
  TORCH_CHECK(!coalescing_, "hccl: coalescing has been started already");
  coalescing_.emplace();
}

WorkPtr HcclBackend::endCoalescing() {
  TORCH_CHECK(coalescing_, "hccl: coalescing has not been started");
  auto works = std::move(*coalescing_);
  coalescing_.reset();
  return c10::make_intrusive<CoalescedWork>(rank_, std::move(works));
}

// Messages ------------------------------------------------------------------------------------------------------------

WorkPtr HcclBackend::send(Tensors& tensors, int destination, int tag) {
  refuse_in_graph(tensors, "hccl send");
  WorkPtr work = wire_->send(single(tensors), destination, tag, limited(timeout_));
  if (coalescing_) {
    coalescing_->push_back(work);
  }
  return work;
}

WorkPtr HcclBackend::recv(Tensors& tensors, int source, int tag) {
  refuse_in_graph(tensors, "hccl recv");
  WorkPtr work = wire_->recv(single(tensors), source, tag, limited(timeout_));
  if (coalescing_) {
    coalescing_->push_back(work);
  }
  return work;
}

WorkPtr HcclBackend::recvAnysource(Tensors& tensors, int tag) {
  refuse_in_graph(tensors, "hccl recv");
  return wire_->recv(single(tensors), -1, tag, limited(timeout_));
}

} // namespace virtual_npu
