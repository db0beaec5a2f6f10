// SPDX-License-Identifier: Apache-2.0
//
// Happens-before of a device's streams, as numbers: a vector clock per stream, one for the host, and for every piece of
// memory who wrote it last and who has read it since. Pure: no torch, no runtime, no locks; what a stream or an operator
// is, only its user knows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace virtual_npu::order {

using Agent = uint32_t; // a stream, in the order in which they were first seen
inline constexpr Agent kHost = UINT32_MAX; // in messages only
using Stamp = std::vector<uint32_t>; // per agent: how many of its operations lie before this point

// One operator call as messages name it.
struct Operation {
  std::string name;
  Agent stream = 0;
  uint32_t site = 0; // of the call, for the user to resolve
};
using OperationPtr = std::shared_ptr<const Operation>;

struct Access {
  uintptr_t start;
  size_t bytes;
  bool write;
};

// Two operators that touch the same bytes, at least one of them writing, of which neither is known to come first.
struct Conflict {
  OperationPtr earlier;
  bool earlier_writes;
  bool later_writes;
  bool reused; // the memory was given out anew between the two
  uintptr_t address;
  size_t bytes;
};

// The clocks. The host is one: its threads hand work to each other in ways that are not seen here, and what one of them
// has waited for, the others may rely on.
class Clocks {
 public:
  Agent agent(const void* stream);
  void forget_stream(const void* stream);

  // A new operation of `agent`, put there by the host: it comes after everything that the host has waited for.
  uint32_t tick(Agent agent);

  const Stamp& now(Agent agent) const { return streams_[agent]; }
  const Stamp& host() const { return host_; }

  void join(Agent agent, const Stamp& stamp) { join(streams_[agent], stamp); }
  void host_waits(const Stamp& stamp);
  bool host_knows(const Stamp& stamp) const;

  void record(const void* event, Agent agent);
  const Stamp* recorded(const void* event) const;
  void forget_event(const void* event) { events_.erase(event); }

  size_t size() const { return streams_.size(); }

 private:
  static void join(Stamp& into, const Stamp& other);

  std::unordered_map<const void*, Agent> agents_;
  std::unordered_map<const void*, Stamp> events_;
  std::vector<Stamp> streams_;
  std::vector<uint64_t> seen_host_; // per agent: the host's waits that it has joined
  Stamp host_;
  uint64_t host_waits_ = 0;
};

// Whether what happened at `time` of `agent` lies before a point with `stamp`.
inline bool before(Agent agent, uint32_t time, const Stamp& stamp) {
  return agent < stamp.size() && time <= stamp[agent];
}

// Last writers and readers, per piece of memory.
class Memory {
 public:
  // `operation` happened at `time`, after everything in `stamp`, and made `accesses`. The first conflict, if any; what it
  // did is remembered all the same.
  std::optional<Conflict> touch(
      const OperationPtr& operation, uint32_t time, const Stamp& stamp, const std::vector<Access>& accesses);

  // A conflict of an access by the host, which has waited for `stamp`. Nothing is remembered: all that comes later is put
  // on streams by the host.
  std::optional<Conflict> touch_by_host(const Stamp& stamp, const Access& access) const;

  void forget(uintptr_t start, size_t bytes);

  // The bytes belong to somebody else from now on.
  void give_out(uintptr_t start, size_t bytes);

 private:
  struct Epoch {
    Agent agent = 0;
    uint32_t time = 0;
    OperationPtr operation; // none: never happened
    bool stale = false; // of a former owner
  };
  struct Piece {
    uintptr_t end;
    Epoch write;
    std::vector<Epoch> reads;
  };
  using Pieces = std::map<uintptr_t, Piece>;

  static std::optional<Conflict> conflict(
      uintptr_t start, const Piece& piece, const Access& access, const Stamp& stamp);
  void split(uintptr_t at);
  void read(const Epoch& epoch, uintptr_t start, uintptr_t end);
  void write(const Epoch& epoch, uintptr_t start, uintptr_t end);

  Pieces pieces_; // by start; they do not overlap
};

} // namespace virtual_npu::order
