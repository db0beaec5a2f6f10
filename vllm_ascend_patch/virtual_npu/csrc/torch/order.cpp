// SPDX-License-Identifier: Apache-2.0
//
// See order.h.
#include "order.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <mutex>

#include "../cann/virtual_graph.h"
#include "../cann/virtual_order.h"
#include "alias.h"
#include "order_copies.h"
#include "order_site.h"
#include "torch_npu/csrc/core/npu/NPUCachingAllocator.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

namespace virtual_npu::order {

bool checks = false;

namespace {

struct StreamName {
  int number;
  int device;
};

struct Checker {
  bool stacks = false;
  std::mutex mutex; // guards what follows; nobody takes the GIL or allocates on a device with it
  Clocks clocks;
  std::vector<StreamName> streams; // by agent
  Memory memory;
  std::unordered_map<uint32_t, Memory> captures; // by number: what their calls touch among themselves
  Copies copies;
  std::unordered_map<const void*, bool> asked; // events that the host has asked for once since they were recorded
  std::unordered_map<std::string, std::unique_ptr<std::string>> communicators; // a byte of each stands for it
  std::unordered_map<std::string, c10_npu::NPUStream> collective_streams;
  std::unordered_map<std::string, uint64_t> calls; // by communicator

  Agent agent(void* stream) {
    const Agent agent = clocks.agent(stream);
    if (agent == streams.size()) {
      StreamName name{};
      virtual_order_stream(stream, &name.number, &name.device);
      streams.push_back(name);
    }
    return agent;
  }
};

Checker& checker() {
  static auto* instance = new Checker; // kept: threads may outlive the process's statics
  return *instance;
}

// The replay under way in this thread.
thread_local void* replay_stream = nullptr;
thread_local uint32_t replay_site = 0;
thread_local size_t replay_graph = 0;

void* current_stream(c10::Device device) {
  return c10_npu::getCurrentNPUStream(device.index()).stream(false);
}

std::string describe(Checker& all, const Operation& operation) {
  if (operation.stream == kHost) {
    return c10::str(operation.name, "\n      ", describe_site(operation.site));
  }
  const StreamName& stream = all.streams[operation.stream];
  return c10::str(
      operation.name, " on stream ", stream.number, " of npu:", stream.device, "\n      ", describe_site(operation.site));
}

const char* verb(bool writes) {
  return writes ? "writes" : "reads";
}

std::string explain(Checker& all, const Conflict& conflict, const Operation& later) {
  const Operation& earlier = *conflict.earlier;
  std::string what;
  std::string missing = "let the later one's stream wait for the earlier one (an event, wait_stream, Work.wait), or the host";
  for (const auto& [name, byte] : all.communicators) {
    if (reinterpret_cast<uintptr_t>(byte.get()) == conflict.address) {
      what = c10::str("two calls of communicator ", name, " are on two streams, and nothing orders them");
    }
  }
  if (what.empty() && conflict.reused) {
    what = c10::str(
        later.name, " ", verb(conflict.later_writes), " ", conflict.bytes, " bytes that were freed and given out again while ",
        earlier.name, ", which ", verb(conflict.earlier_writes), " them on another stream, may not have run");
    missing = "call record_stream on the freed tensor with the earlier one's stream, or let the stream that it was allocated "
              "on wait before it is freed";
  } else if (what.empty()) {
    what = c10::str(
        later.name, " ", verb(conflict.later_writes), " ", conflict.bytes, " bytes that ", earlier.name, " ",
        verb(conflict.earlier_writes), " on another stream, and nothing orders the two");
  }
  return c10::str(
      "virtual-npu --check-order: ", what, "\n  earlier: ", describe(all, earlier), "\n  later: ", describe(all, later),
      "\n  missing: ", missing);
}

std::string explain(Checker& all, const Copies::Trouble& trouble, uint32_t site) {
  const char* what = trouble.to_host
      ? "the destination of an asynchronous copy to the host was read or written before the copy was known to be done"
      : "the pinned source of an asynchronous copy to the device was written before the copy was known to be done";
  return c10::str(
      "virtual-npu --check-order: ", what, "\n  copy: ", describe(all, *trouble.operation),
      trouble.site ? c10::str("\n  touched: ", describe_site(*trouble.site)) : "\n  touched: before the host waited",
      site == 0 ? "" : c10::str(", ", describe_site(site)),
      "\n  missing: wait on the host for an event that is recorded after the copy, before the memory is touched");
}

// The host has waited: copies that it now knows to be done are over. What is wrong with them, if anything.
std::string settle(Checker& all, std::list<Late>& over, uint32_t site) {
  const auto troubles = all.copies.settle(all.clocks.host(), over);
  return troubles.empty() ? "" : explain(all, troubles.front(), site);
}

std::string host_joins(Checker& all, const Stamp& stamp, uint32_t site) {
  std::list<Late> over; // dropped after the lock
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.clocks.host_waits(stamp);
  return settle(all, over, site);
}

void add_range(const void* memory, size_t bytes, bool write, std::vector<Access>& ranges) {
  if (bytes != 0 && virtual_registered(memory) != 0) {
    ranges.push_back({reinterpret_cast<uintptr_t>(memory), bytes, write});
  }
}

struct Done {
  OperationPtr operation;
  uint32_t time;
  std::string trouble; // empty: none
};

// Put an operation on a stream, the lock being held.
Done put(Checker& all, std::string name, void* stream, uint32_t site, const std::vector<Access>& accesses) {
  const Agent agent = all.agent(stream);
  const auto operation = std::make_shared<const Operation>(Operation{std::move(name), agent, site});
  const uint32_t time = all.clocks.tick(agent);
  const uint32_t capture = virtual_graph_busy() != 0 ? virtual_graph_number(stream) : 0;
  Memory& memory = capture != 0 ? all.captures[capture] : all.memory;
  const auto conflict = memory.touch(operation, time, all.clocks.now(agent), accesses);
  return {operation, time, conflict ? explain(all, *conflict, *operation) : ""};
}

int fail(const std::string& trouble) {
  return trouble.empty() ? 0 : virtual_graph_error(trouble.c_str());
}

int put_or_fail(std::string name, void* stream, uint32_t site, const std::vector<Access>& accesses) {
  Checker& all = checker();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return fail(put(all, std::move(name), stream, site, accesses).trouble);
}

int host_waits_for_event(const void* event, bool asks) {
  Checker& all = checker();
  std::list<Late> over;
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const Stamp* stamp = all.clocks.recorded(event);
    if (stamp == nullptr) {
      return 0;
    }
    if (asks && !all.clocks.host_knows(*stamp) && !all.asked[event]) { // a device answers "not yet" before "done"
      all.asked[event] = true;
      return ORDER_NOT_YET;
    }
    all.clocks.host_waits(*stamp);
    trouble = settle(all, over, 0);
  }
  return fail(trouble);
}

int host_waits_for_streams(void* stream, std::optional<int> device) {
  Checker& all = checker();
  std::list<Late> over;
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (device) {
      for (Agent agent = 0; agent < all.streams.size(); ++agent) {
        if (all.streams[agent].device == *device) {
          all.clocks.host_waits(all.clocks.now(agent));
        }
      }
    } else {
      all.clocks.host_waits(all.clocks.now(all.agent(stream)));
    }
    trouble = settle(all, over, 0);
  }
  return fail(trouble);
}

int host_copies(const virtual_order_call& call) {
  std::vector<Access> ranges;
  add_range(call.source, call.bytes, false, ranges);
  add_range(call.subject, call.bytes, true, ranges);
  if (ranges.empty()) {
    return 0;
  }
  Checker& all = checker();
  const uint32_t site = call_site(all.stacks);
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const Access& range : ranges) {
    if (const auto conflict = all.memory.touch_by_host(all.clocks.host(), range)) {
      return fail(explain(all, *conflict, Operation{"the host's own copy (aclrtMemcpy)", kHost, site}));
    }
  }
  return 0;
}

// What the runtime tells (virtual_order.h).
int told(const virtual_order_call* call) {
  Checker& all = checker();
  void* const stream = call->stream != nullptr ? call->stream : replay_stream;
  std::vector<Access> ranges;
  switch (call->kind) {
    case ORDER_RECORD: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.clocks.record(call->subject, all.agent(stream));
      all.asked.erase(call->subject);
      return 0;
    }
    case ORDER_WAIT: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      if (const Stamp* stamp = all.clocks.recorded(call->subject)) {
        all.clocks.join(all.agent(stream), *stamp);
      }
      return 0;
    }
    case ORDER_EVENT_GONE: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.clocks.forget_event(call->subject);
      all.asked.erase(call->subject);
      return 0;
    }
    case ORDER_STREAM_GONE: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.clocks.forget_stream(call->stream);
      return 0;
    }
    case ORDER_SYNC_EVENT:
      return host_waits_for_event(call->subject, false);
    case ORDER_QUERY_EVENT:
      return host_waits_for_event(call->subject, true);
    case ORDER_SYNC_STREAM:
      return host_waits_for_streams(call->stream, std::nullopt);
    case ORDER_SYNC_DEVICE:
      return host_waits_for_streams(nullptr, static_cast<int>(call->bytes));
    case ORDER_COPY:
      add_range(call->source, call->bytes, false, ranges);
      add_range(call->subject, call->bytes, true, ranges);
      return put_or_fail("a copy (aclrtMemcpyAsync)", call->stream, call_site(all.stacks), ranges);
    case ORDER_FILL:
      add_range(call->subject, call->bytes, true, ranges);
      return put_or_fail("a fill (aclrtMemsetAsync)", call->stream, call_site(all.stacks), ranges);
    case ORDER_HOST_COPY:
      return host_copies(*call);
    case ORDER_UNMAPPED: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.memory.forget(reinterpret_cast<uintptr_t>(call->subject), call->bytes);
      return 0;
    }
    case ORDER_CAPTURE_ENDS: {
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.captures.erase(static_cast<uint32_t>(call->bytes));
      return 0;
    }
    case ORDER_REPLAY_BEGINS:
      replay_stream = call->stream;
      replay_graph = call->bytes;
      replay_site = call_site(all.stacks);
      return 0;
    case ORDER_REPLAY_ENDS:
      replay_stream = nullptr;
      return 0;
    case ORDER_GROUP_UPDATED:
      ranges.push_back({reinterpret_cast<uintptr_t>(call->subject), 1, true});
      return put_or_fail(
          c10::str("the update of a task group of graph ", call->bytes), call->stream, call_site(all.stacks), ranges);
    case ORDER_GROUP_REPLAYED:
      ranges.push_back({reinterpret_cast<uintptr_t>(call->subject), 1, false});
      return put_or_fail(c10::str("the replay of graph ", replay_graph), replay_stream, replay_site, ranges);
  }
  return 0;
}

// torch_npu's allocator gives memory out anew without telling the runtime. Wheels without the observer: messages do not
// say that memory was reused.
template <typename Allocator>
void observe_allocator(Allocator* allocator) {
  if constexpr (requires { &Allocator::attachAllocatorTraceTracker; }) {
    allocator->attachAllocatorTraceTracker([](const auto& entry) {
      if (entry.action_ == std::decay_t<decltype(entry)>::ALLOC) {
        Checker& all = checker();
        const std::lock_guard<std::mutex> lock(all.mutex);
        all.memory.give_out(static_cast<uintptr_t>(entry.addr_), static_cast<size_t>(entry.size_));
      }
    });
  }
}

} // namespace

void enable(bool stacks) {
  checker().stacks = stacks;
  checks = true;
  virtual_order_check(&told);
}

std::string finish() {
  Checker& all = checker();
  std::list<Late> over;
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto troubles = all.copies.settle_all(over);
  return troubles.empty() ? "" : explain(all, troubles.front(), 0);
}

void add_ranges(const at::Tensor& tensor, bool write, std::vector<Access>& ranges) {
  if (tensor.numel() == 0) {
    return;
  }
  const auto item = static_cast<int64_t>(tensor.element_size());
  std::vector<std::pair<int64_t, int64_t>> outer; // stride in bytes, size
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != 0) {
      outer.emplace_back(tensor.stride(i) * item, tensor.size(i));
    }
  }
  std::sort(outer.begin(), outer.end());
  int64_t block = item; // bytes in one piece
  auto at = outer.begin();
  for (; at != outer.end() && at->first <= block; ++at) {
    block = at->first * (at->second - 1) + block;
  }
  outer.erase(outer.begin(), at);
  size_t count = 1;
  int64_t span = block;
  for (const auto& [stride, size] : outer) {
    count *= static_cast<size_t>(size);
    span += stride * (size - 1);
  }
  const auto start = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (count > kMostRanges) {
    ranges.push_back({start, static_cast<size_t>(span), write});
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    size_t rest = i;
    int64_t offset = 0;
    for (const auto& [stride, size] : outer) {
      offset += stride * static_cast<int64_t>(rest % static_cast<size_t>(size));
      rest /= static_cast<size_t>(size);
    }
    ranges.push_back({start + static_cast<uintptr_t>(offset), static_cast<size_t>(block), write});
  }
}

// Launches ------------------------------------------------------------------------------------------------------------

Launch::Launch(std::string name, c10::Device device) : name_(std::move(name)), stream_(current_stream(device)) {
  static const bool observed = (observe_allocator(c10_npu::NPUCachingAllocator::get()), true);
  (void)observed;
}

void Launch::touch(const at::Tensor& tensor, bool write) {
  if (tensor.defined() && tensor.device().type() == kNPU) {
    add_ranges(tensor, write, accesses_);
  }
}

void Launch::communicate(const std::string& communicator) {
  Checker& all = checker();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto& byte = all.communicators[communicator];
  if (!byte) {
    byte = std::make_unique<std::string>(communicator);
  }
  accesses_.push_back({reinterpret_cast<uintptr_t>(byte.get()), 1, true});
}

void Launch::across(c10::Device device) {
  peer_ = current_stream(device);
}

void Launch::copy(const at::Tensor& host, bool to_host, bool non_blocking) {
  if (virtual_graph_busy() != 0 && virtual_graph_state(stream_) != VIRTUAL_STREAM_RUNS) {
    return;
  }
  const bool pinned = host.is_pinned();
  if (non_blocking && !pinned && host.numel() != 0) {
    TORCH_WARN_ONCE(
        "virtual-npu --check-order: ", name_, " is asked for without blocking, but its host memory is pageable: torch_npu "
        "waits for the stream (first seen at ", describe_site(call_site(false)), ")");
  }
  host_ = host;
  to_host_ = to_host;
  late_ = non_blocking && pinned;
  blocks_ = !late_;
  if (!pinned) {
    return;
  }
  add_ranges(host, to_host, accesses_);
  std::vector<Access> ranges;
  add_ranges(host, to_host, ranges);
  Checker& all = checker();
  std::list<Late> over;
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto troubles = all.copies.settle_overlapping(ranges, over);
    trouble = troubles.empty() ? "" : explain(all, troubles.front(), 0);
  }
  TORCH_CHECK(trouble.empty(), trouble);
}

void Launch::commit() {
  if (virtual_graph_busy() != 0 && virtual_graph_state(stream_) != VIRTUAL_STREAM_RUNS) {
    captured_ = std::make_shared<const Captured>(Captured{name_, accesses_});
    if (virtual_graph_state(stream_) == VIRTUAL_STREAM_UPDATES) {
      return; // the runtime tells of it
    }
  }
  Checker& all = checker();
  const uint32_t site = call_site(all.stacks);
  std::list<Late> over;
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (peer_ != nullptr) {
      const Stamp peer = all.clocks.now(all.agent(peer_));
      all.clocks.join(all.agent(stream_), peer);
    }
    const Done done = put(all, name_, stream_, site, accesses_);
    trouble = done.trouble;
    if (peer_ != nullptr) {
      const Stamp own = all.clocks.now(done.operation->stream);
      all.clocks.join(all.agent(peer_), own);
    }
    if (late_) {
      all.copies.add(done.operation, done.time, to_host_, host_, all.stacks);
    }
    if (blocks_) {
      all.clocks.host_waits(all.clocks.now(done.operation->stream));
      const std::string of_copy = settle(all, over, site);
      trouble = trouble.empty() ? of_copy : trouble;
    }
  }
  TORCH_CHECK(trouble.empty(), trouble);
}

void replay(const Captured& call) {
  Checker& all = checker();
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    trouble = put(all, c10::str(call.name, " in the replay of graph ", replay_graph), replay_stream, replay_site, call.accesses)
                  .trouble;
  }
  TORCH_CHECK(trouble.empty(), trouble);
}

// Collectives ---------------------------------------------------------------------------------------------------------

Stamp collective(
    const std::string& name,
    c10::Device device,
    const std::string& communicator,
    const std::vector<at::Tensor>& inputs,
    const std::vector<at::Tensor>& outputs) {
  Checker& all = checker();
  const uint32_t site = call_site(all.stacks);
  std::optional<c10_npu::NPUStream> own;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.collective_streams.find(communicator);
    own = found == all.collective_streams.end() ? std::nullopt : std::optional(found->second);
  }
  if (!own) {
    own = c10_npu::getNPUStreamFromPool(device.index());
    const std::lock_guard<std::mutex> lock(all.mutex);
    own = all.collective_streams.try_emplace(communicator, *own).first->second;
  }
  Launch call(name, device);
  std::vector<Access> accesses;
  for (const bool write : {false, true}) {
    for (const at::Tensor& tensor : write ? outputs : inputs) {
      if (tensor.defined() && tensor.device().type() == kNPU) {
        add_ranges(tensor, write, accesses);
        tensor.record_stream(own->unwrap());
      }
    }
  }
  void* const stream = own->stream(false);
  void* const caller = current_stream(device);
  Stamp stamp;
  std::string trouble;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto& byte = all.communicators[communicator];
    if (!byte) {
      byte = std::make_unique<std::string>(communicator);
    }
    accesses.push_back({reinterpret_cast<uintptr_t>(byte.get()), 1, true});
    ++all.calls[communicator];
    const Stamp before_call = all.clocks.now(all.agent(caller));
    const Agent agent = all.agent(stream);
    all.clocks.join(agent, before_call);
    const Done done = put(all, name, stream, site, accesses);
    trouble = done.trouble;
    stamp = all.clocks.now(agent);
  }
  TORCH_CHECK(trouble.empty(), trouble);
  return stamp;
}

void join_communicator(const std::string& name) {
  Checker& all = checker();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.calls.try_emplace(name, 0);
}

void leave_communicator(const std::string& name) {
  Checker& all = checker();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.calls.erase(name);
}

std::vector<Calls> calls_so_far() {
  Checker& all = checker();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<Calls> calls;
  for (const auto& [name, count] : all.calls) {
    calls.push_back({std::hash<std::string>()(name), count});
  }
  return calls;
}

std::string compare_calls(
    const std::vector<Calls>& mine, const std::vector<Calls>& theirs, const std::string& me, const std::string& other) {
  for (const Calls& own : mine) {
    for (const Calls& their : theirs) {
      if (own.communicator == their.communicator && own.count != their.count) {
        Checker& all = checker();
        std::string name = "?";
        const std::lock_guard<std::mutex> lock(all.mutex);
        for (const auto& known : all.calls) {
          name = std::hash<std::string>()(known.first) == own.communicator ? known.first : name;
        }
        return c10::str(
            "virtual-npu --check-order: ", me, " made this call after ", own.count, " call(s) of communicator ", name, ", ",
            other, " after ", their.count, "; ranks must call the communicators that they share in one order");
      }
    }
  }
  return "";
}

void stream_waits(c10::Device device, const Stamp& stamp) {
  Checker& all = checker();
  void* const stream = current_stream(device);
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.clocks.join(all.agent(stream), stamp);
}

void host_waits(const Stamp& stamp) {
  const std::string trouble = host_joins(checker(), stamp, 0);
  TORCH_CHECK(trouble.empty(), trouble);
}

} // namespace virtual_npu::order
