// SPDX-License-Identifier: Apache-2.0
//
// See pages.h.
#include "pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "alias.h"

namespace virtual_npu {
namespace {

// Below this size writing zeros is faster than faulting fresh pages in.
constexpr size_t kSmallest = size_t{4} << 20;

} // namespace

bool zero_pages(const at::Tensor& tensor) {
  if (tensor.device().type() != kNPU || tensor.nbytes() < kSmallest || !tensor.is_non_overlapping_and_dense()) {
    return false;
  }
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* start = static_cast<char*>(tensor.mutable_data_ptr());
  char* end = start + tensor.nbytes();
  char* first = start + (page - reinterpret_cast<uintptr_t>(start) % page) % page;
  char* last = end - reinterpret_cast<uintptr_t>(end) % page;
  // Device memory is private and anonymous (csrc/cann/memory.c): dropped pages read as zeros.
  if (madvise(first, static_cast<size_t>(last - first), MADV_DONTNEED) != 0) {
    return false;
  }
  std::memset(start, 0, static_cast<size_t>(first - start));
  std::memset(last, 0, static_cast<size_t>(end - last));
  return true;
}

} // namespace virtual_npu
