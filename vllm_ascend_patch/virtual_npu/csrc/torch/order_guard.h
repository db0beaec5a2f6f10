// SPDX-License-Identifier: Apache-2.0
//
// Pages of pinned host memory that a program must not touch yet: the processor reports who does, and the program goes on.
// Why it must not is not known here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace virtual_npu::order {

class Guard {
 public:
  // Watch `bytes` of whole pages at `start`, for writes only or for any access; nullopt if there are too many already.
  // `stacks`: as for call_site.
  static std::optional<Guard> watch(uintptr_t start, size_t bytes, bool writes_only, bool stacks);

  // The site of the first access, if there was one. The pages are open afterwards.
  std::optional<uint32_t> release() const;

 private:
  explicit Guard(size_t slot) : slot_(slot) {}

  size_t slot_;
};

} // namespace virtual_npu::order
