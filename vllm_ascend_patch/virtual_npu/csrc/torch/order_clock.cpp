// SPDX-License-Identifier: Apache-2.0
//
// See order_clock.h.
#include "order_clock.h"

#include <algorithm>

namespace virtual_npu::order {

Agent Clocks::agent(const void* stream) {
  const auto [found, added] = agents_.try_emplace(stream, static_cast<Agent>(streams_.size()));
  if (added) {
    streams_.emplace_back();
    seen_host_.push_back(0);
  }
  return found->second;
}

void Clocks::forget_stream(const void* stream) {
  agents_.erase(stream); // its clock stays: what it did may still be waited for
}

uint32_t Clocks::tick(Agent agent) {
  Stamp& clock = streams_[agent];
  if (seen_host_[agent] != host_waits_) {
    join(clock, host_);
    seen_host_[agent] = host_waits_;
  }
  if (clock.size() <= agent) {
    clock.resize(agent + 1, 0);
  }
  return ++clock[agent];
}

void Clocks::host_waits(const Stamp& stamp) {
  join(host_, stamp);
  ++host_waits_;
}

bool Clocks::host_knows(const Stamp& stamp) const {
  for (size_t i = 0; i < stamp.size(); ++i) {
    if (stamp[i] != 0 && !before(static_cast<Agent>(i), stamp[i], host_)) {
      return false;
    }
  }
  return true;
}

void Clocks::record(const void* event, Agent agent) {
  events_[event] = streams_[agent];
}

const Stamp* Clocks::recorded(const void* event) const {
  const auto found = events_.find(event);
  return found == events_.end() ? nullptr : &found->second;
}

void Clocks::join(Stamp& into, const Stamp& other) {
  if (into.size() < other.size()) {
    into.resize(other.size(), 0);
  }
  for (size_t i = 0; i < other.size(); ++i) {
    into[i] = std::max(into[i], other[i]);
  }
}

std::optional<Conflict> Memory::conflict(
    uintptr_t start, const Piece& piece, const Access& access, const Stamp& stamp) {
  const auto unordered = [&](const Epoch& epoch) {
    return epoch.operation != nullptr && !before(epoch.agent, epoch.time, stamp);
  };
  const auto with = [&](const Epoch& epoch, bool writes) {
    const uintptr_t from = std::max(start, access.start);
    const uintptr_t to = std::min(piece.end, access.start + access.bytes);
    return Conflict{epoch.operation, writes, access.write, epoch.stale, from, to - from};
  };
  if (unordered(piece.write)) {
    return with(piece.write, true);
  }
  if (access.write) {
    for (const Epoch& epoch : piece.reads) {
      if (unordered(epoch)) {
        return with(epoch, false);
      }
    }
  }
  return std::nullopt;
}

std::optional<Conflict> Memory::touch(
    const OperationPtr& operation, uint32_t time, const Stamp& stamp, const std::vector<Access>& accesses) {
  std::optional<Conflict> found;
  for (const Access& access : accesses) {
    if (!found && access.bytes != 0) {
      found = touch_by_host(stamp, access);
    }
  }
  const Epoch epoch{operation->stream, time, operation, false};
  for (const bool writes : {false, true}) {
    for (const Access& access : accesses) {
      if (access.write == writes && access.bytes != 0) {
        writes ? write(epoch, access.start, access.start + access.bytes)
               : read(epoch, access.start, access.start + access.bytes);
      }
    }
  }
  return found;
}

std::optional<Conflict> Memory::touch_by_host(const Stamp& stamp, const Access& access) const {
  auto at = pieces_.upper_bound(access.start);
  if (at != pieces_.begin()) {
    --at;
  }
  for (; at != pieces_.end() && at->first < access.start + access.bytes; ++at) {
    if (at->second.end > access.start) {
      if (auto found = conflict(at->first, at->second, access, stamp)) {
        return found;
      }
    }
  }
  return std::nullopt;
}

void Memory::split(uintptr_t at) {
  auto next = pieces_.upper_bound(at);
  if (next == pieces_.begin()) {
    return;
  }
  auto& [start, piece] = *std::prev(next);
  if (start < at && at < piece.end) {
    Piece right = piece;
    piece.end = at;
    pieces_.emplace_hint(next, at, std::move(right));
  }
}

void Memory::read(const Epoch& epoch, uintptr_t start, uintptr_t end) {
  split(start);
  split(end);
  auto at = pieces_.lower_bound(start);
  while (start < end) {
    if (at == pieces_.end() || at->first > start) { // bytes that nobody has touched
      const uintptr_t stop = at == pieces_.end() ? end : std::min(end, at->first);
      at = pieces_.emplace_hint(at, start, Piece{stop, {}, {}});
    }
    auto& reads = at->second.reads;
    const auto own = std::find_if(reads.begin(), reads.end(), [&](const Epoch& r) { return r.agent == epoch.agent; });
    own == reads.end() ? reads.push_back(epoch) : void(*own = epoch);
    start = at->second.end;
    ++at;
  }
}

void Memory::write(const Epoch& epoch, uintptr_t start, uintptr_t end) {
  const auto same = pieces_.find(start);
  if (same != pieces_.end() && same->second.end == end) { // the usual case: a tensor that was written before
    same->second.write = epoch;
    same->second.reads.clear();
    return;
  }
  forget(start, end - start);
  pieces_.emplace(start, Piece{end, epoch, {}});
}

void Memory::forget(uintptr_t start, size_t bytes) {
  split(start);
  split(start + bytes);
  pieces_.erase(pieces_.lower_bound(start), pieces_.lower_bound(start + bytes));
}

void Memory::give_out(uintptr_t start, size_t bytes) {
  split(start);
  split(start + bytes);
  const auto end = pieces_.lower_bound(start + bytes);
  for (auto at = pieces_.lower_bound(start); at != end; ++at) {
    at->second.write.stale = true;
    for (Epoch& epoch : at->second.reads) {
      epoch.stale = true;
    }
  }
}

} // namespace virtual_npu::order
