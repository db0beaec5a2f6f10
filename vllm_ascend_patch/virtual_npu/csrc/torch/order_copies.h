// SPDX-License-Identifier: Apache-2.0
//
// Copies between host and device that the host does not know to be done. The bytes of one to the host are held back, and
// its destination holds a pattern until then; the source of one to the device must not change until then. When somebody
// may know is not decided here.
#pragma once

#include <ATen/core/Tensor.h>

#include <list>
#include <string>
#include <vector>

#include "order_clock.h"
#include "order_guard.h"

namespace virtual_npu::order {

inline constexpr unsigned char kPoison = 0xAB; // -1.2e-12 as float32, -1414812757 as int32

struct Late {
  OperationPtr operation;
  uint32_t time;
  bool to_host;
  std::vector<Access> ranges; // on the host
  std::vector<char> bytes; // in the order of the ranges
  at::Tensor host; // keeps the memory, as torch_npu's allocator of pinned memory does
  std::optional<Guard> guard; // where the copy has pages of its own
};

class Copies {
 public:
  // The copy has been made; hide its result, or remember its source.
  void add(OperationPtr operation, uint32_t time, bool to_host, const at::Tensor& host, bool stacks);

  // A copy whose host memory was touched too early, and by whom where that was seen.
  struct Trouble {
    OperationPtr operation;
    bool to_host;
    std::optional<uint32_t> site;
  };

  // The host has waited for `stamp`: deliver, and verify that nobody touched the memory in between. Copies that are over are
  // moved to `over`, whose tensors must be dropped without locks.
  std::vector<Trouble> settle(const Stamp& stamp, std::list<Late>& over);

  // The same for those whose host memory overlaps `ranges`, because the device itself goes on with it.
  std::vector<Trouble> settle_overlapping(const std::vector<Access>& ranges, std::list<Late>& over);

  // All of them, at the end of the process.
  std::vector<Trouble> settle_all(std::list<Late>& over);

 private:
  template <typename Done>
  std::vector<Trouble> settle_if(const Done& done, std::list<Late>& over);

  std::list<Late> copies_;
};

} // namespace virtual_npu::order
