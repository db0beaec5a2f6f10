// SPDX-License-Identifier: Apache-2.0
//
// See order_copies.h.
#include "order_copies.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../cann/virtual_order.h"
#include "order.h"

namespace virtual_npu::order {
namespace {

template <typename Visit>
void for_each_range(Late& copy, const Visit& visit) {
  char* bytes = copy.bytes.data();
  for (const Access& range : copy.ranges) {
    visit(reinterpret_cast<char*>(range.start), bytes, range.bytes);
    bytes += range.bytes;
  }
}

bool is_poison(const char* memory, size_t bytes) {
  return std::all_of(memory, memory + bytes, [](char byte) { return static_cast<unsigned char>(byte) == kPoison; });
}

// Whether the host left the memory alone.
bool untouched(Late& copy) {
  bool same = true;
  for_each_range(copy, [&](char* memory, char* bytes, size_t count) {
    same = same && (copy.to_host ? is_poison(memory, count) : std::memcmp(memory, bytes, count) == 0);
  });
  return same;
}

// Only if the copy is of all of its storage, which begins a block of pages: nobody else has a right to touch these.
std::optional<Guard> guard(const Late& copy, bool stacks) {
  void* start = nullptr;
  size_t bytes = 0;
  const auto& storage = copy.host.storage();
  const auto& ranges = copy.ranges;
  if (ranges.size() != 1 || ranges[0].bytes != storage.nbytes() ||
      virtual_pinned_pages(storage.data(), &start, &bytes) == 0 || start != storage.data()) {
    return std::nullopt;
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t pages = (ranges[0].bytes + page - 1) / page * page;
  return Guard::watch(ranges[0].start, pages, !copy.to_host, stacks);
}

} // namespace

void Copies::add(OperationPtr operation, uint32_t time, bool to_host, const at::Tensor& host, bool stacks) {
  Late copy{std::move(operation), time, to_host, {}, {}, host, std::nullopt};
  add_ranges(host, to_host, copy.ranges);
  size_t total = 0;
  for (const Access& range : copy.ranges) {
    total += range.bytes;
  }
  copy.bytes.resize(total);
  for_each_range(copy, [&](char* memory, char* bytes, size_t count) {
    std::memcpy(bytes, memory, count);
    if (to_host) {
      std::memset(memory, kPoison, count);
    }
  });
  copy.guard = guard(copy, stacks);
  copies_.push_back(std::move(copy));
}

template <typename Done>
std::vector<Copies::Trouble> Copies::settle_if(const Done& done, std::list<Late>& over) {
  std::vector<Trouble> troubles;
  for (auto at = copies_.begin(); at != copies_.end();) {
    const auto copy = at++;
    if (!done(*copy)) {
      continue;
    }
    const std::optional<uint32_t> toucher = copy->guard ? copy->guard->release() : std::nullopt;
    if (toucher || !untouched(*copy)) {
      troubles.push_back({copy->operation, copy->to_host, toucher});
    }
    if (copy->to_host) {
      for_each_range(*copy, [](char* memory, char* bytes, size_t count) { std::memcpy(memory, bytes, count); });
    }
    over.splice(over.end(), copies_, copy);
  }
  return troubles;
}

std::vector<Copies::Trouble> Copies::settle(const Stamp& stamp, std::list<Late>& over) {
  return settle_if([&](const Late& copy) { return before(copy.operation->stream, copy.time, stamp); }, over);
}

std::vector<Copies::Trouble> Copies::settle_overlapping(const std::vector<Access>& ranges, std::list<Late>& over) {
  const auto overlaps = [&](const Late& copy) {
    return std::any_of(copy.ranges.begin(), copy.ranges.end(), [&](const Access& mine) {
      return std::any_of(ranges.begin(), ranges.end(), [&](const Access& other) {
        return mine.start < other.start + other.bytes && other.start < mine.start + mine.bytes;
      });
    });
  };
  return settle_if(overlaps, over);
}

std::vector<Copies::Trouble> Copies::settle_all(std::list<Late>& over) {
  return settle_if([](const Late&) { return true; }, over);
}

} // namespace virtual_npu::order
