// SPDX-License-Identifier: Apache-2.0
//
// Moves bytes between the ranks of one group, after making sure that all of them make the same call. Which bytes belong
// to which collective is not known here.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "order.h"

namespace virtual_npu {

using Milliseconds = std::chrono::milliseconds;
using Deadline = std::chrono::steady_clock::time_point;

// The bytes of `tensor`, on a host or an NPU, as a flat uint8 tensor over the same memory, which it keeps alive except
// in a graph. Raises if the elements are not one block of memory.
at::Tensor bytes_of(const at::Tensor& tensor);

class Wire : public std::enable_shared_from_this<Wire> {
 public:
  // `links` connects the `size` ranks of the group; `global_ranks[i]` is how errors call group rank i.
  Wire(c10::intrusive_ptr<c10d::Backend> links, int rank, int size, std::vector<int64_t> global_ranks);

  // One step of a collective: sends[p] goes to rank p and recvs[p] is filled by it; flat byte tensors, empty or undefined
  // where nothing moves. `call` must be the same text on all ranks. Raises, and breaks the group for good, when a rank
  // is gone, late, calls something else or means another number of bytes.
  void exchange(
      const std::string& call,
      const std::vector<at::Tensor>& sends,
      const std::vector<at::Tensor>& recvs,
      Milliseconds timeout);

  // What this rank had called before the step that follows, for the others to compare; where order is checked.
  void called_before(std::vector<order::Calls> calls) { calls_ = std::move(calls); }

  // One message between two ranks. Neither blocks; the work's wait does. `peer` < 0 receives from any rank.
  c10::intrusive_ptr<c10d::Work> send(const at::Tensor& tensor, int peer, int tag, Milliseconds timeout);
  c10::intrusive_ptr<c10d::Work> recv(const at::Tensor& tensor, int peer, int tag, Milliseconds timeout);

  // End what is under way in other threads with an error, and refuse what comes.
  void abort();

  std::string name(int peer) const;

 private:
  friend class SendWork;
  friend class RecvWork;
  using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;

  // What one step has posted for another rank, and whether its header was read.
  struct Peer {
    int rank;
    at::Tensor header;
    c10::intrusive_ptr<c10d::Work> header_arrives;
    c10::intrusive_ptr<c10d::Work> bytes_arrive;
    bool header_read = false;
  };

  c10::intrusive_ptr<c10d::Backend> links(const std::string& call);
  c10::intrusive_ptr<c10d::Work> post_send(
      const c10::intrusive_ptr<c10d::Backend>& links, at::Tensor bytes, int peer, int tag);
  c10::intrusive_ptr<c10d::Work> post_recv(
      const c10::intrusive_ptr<c10d::Backend>& links, at::Tensor bytes, int peer, int tag);
  void wait(const c10::intrusive_ptr<c10d::Work>& work, Deadline deadline);
  void say_farewell(const c10::intrusive_ptr<c10d::Backend>& links, std::vector<Peer>& peers);
  [[noreturn]] void fail(const std::string& call, const std::string& reason);

  const int rank_;
  const int size_;
  const std::vector<int64_t> global_ranks_;
  uint64_t step_ = 0;
  std::vector<order::Calls> calls_;

  std::mutex mutex_; // guards what follows
  c10::intrusive_ptr<c10d::Backend> links_;
  std::string failure_;
  Works waiting_;
};

} // namespace virtual_npu
