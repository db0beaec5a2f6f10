// SPDX-License-Identifier: Apache-2.0
//
// The checker of order: what the virtual NPU's kernels, copies and collectives tell it, and the errors it raises. Off
// unless the launcher was told to check; then every caller here asks `enabled` first. Clocks and memory are in
// order_clock.h, copies that are not done yet in order_copies.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "order_clock.h"

namespace virtual_npu::order {

extern bool checks; // read through `enabled`

inline bool enabled() {
  return checks;
}

// Check from now on, before the first stream is made. `stacks`: keep whole Python stacks, not only a line.
void enable(bool stacks);

// At the end of the process: what was overwritten while a copy may still have read it. Empty if nothing.
std::string finish();

// What a captured call does at every replay.
struct Captured {
  std::string name;
  std::vector<Access> accesses;
};
using CapturedPtr = std::shared_ptr<const Captured>;

// One operator call on the current stream of a device.
class Launch {
 public:
  Launch(std::string name, c10::Device device);

  // Tensors on an NPU that it reads or writes; others are ignored.
  void read(const at::Tensor& tensor) { touch(tensor, false); }
  void write(const at::Tensor& tensor) { touch(tensor, true); }

  // It communicates: calls of one communicator must be ordered.
  void communicate(const std::string& communicator);

  // It copies between devices: both of their streams wait for each other.
  void across(c10::Device device);

  // It copies to or from `host`. Call before the bytes are moved.
  void copy(const at::Tensor& host, bool to_host, bool non_blocking);

  // The host waits for its result.
  void blocks() { blocks_ = true; }

  // It has run, or was captured. Raises if it is not ordered after what touched the same memory.
  void commit();

  // After `commit` on a stream that captures or updates; else empty.
  const CapturedPtr& captured() const { return captured_; }

 private:
  void touch(const at::Tensor& tensor, bool write);

  std::string name_;
  void* stream_;
  void* peer_ = nullptr;
  std::vector<Access> accesses_;
  at::Tensor host_;
  bool to_host_ = false;
  bool late_ = false;
  bool blocks_ = false;
  CapturedPtr captured_;
};

// A captured call runs again, in the replay that is under way in this thread.
void replay(const Captured& call);

// A collective of `communicator`, on the stream that torch_npu's process group has for it. It comes after what the current
// stream of `device` has done; the result is the point at which it is done.
Stamp collective(
    const std::string& name,
    c10::Device device,
    const std::string& communicator,
    const std::vector<at::Tensor>& inputs,
    const std::vector<at::Tensor>& outputs);

// How many collectives this process has put on a communicator, which all of its ranks name alike.
struct Calls {
  uint64_t communicator; // hash of its name
  uint64_t count;
};

void join_communicator(const std::string& name);
void leave_communicator(const std::string& name);

// Of all communicators that this process is in. Taken at a call, they say what the process called before it.
std::vector<Calls> calls_so_far();

// Whether two ranks that made the same call had called the communicators that both are in equally often; what is wrong if
// not.
std::string compare_calls(
    const std::vector<Calls>& mine, const std::vector<Calls>& theirs, const std::string& me, const std::string& other);

// The current stream of `device`, or the host, comes after `stamp` from now on.
void stream_waits(c10::Device device, const Stamp& stamp);
void host_waits(const Stamp& stamp);

// The bytes of a strided tensor as few ranges as possible; one range for more than `kMostRanges`.
inline constexpr size_t kMostRanges = 1024;
void add_ranges(const at::Tensor& tensor, bool write, std::vector<Access>& ranges);

} // namespace virtual_npu::order
