// SPDX-License-Identifier: Apache-2.0
//
// See order_guard.h.
#include "order_guard.h"

#include <Python.h>
#include <csignal>
#include <sys/mman.h>

#include <array>
#include <atomic>

#include "order_site.h"

namespace virtual_npu::order {
namespace {

// The handler of a fault reads these without a lock: `start` is set last and cleared first.
struct Watched {
  std::atomic<uintptr_t> start{0};
  std::atomic<size_t> bytes{0};
  std::atomic<bool> stacks{false};
  std::atomic<bool> touched{false};
  std::atomic<uint32_t> site{0};
};

std::array<Watched, 256> watched;
struct sigaction previous {};

void open(const Watched& pages, uintptr_t start) {
  mprotect(reinterpret_cast<void*>(start), pages.bytes, PROT_READ | PROT_WRITE);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Watched& pages : watched) {
    const uintptr_t start = pages.start;
    if (start != 0 && address >= start && address < start + pages.bytes) {
      open(pages, start);
      // A thread that Python does not know has no frames. The others are not inside of Python's own code: that owns no
      // pinned memory.
      pages.site = PyGILState_GetThisThreadState() != nullptr ? call_site(pages.stacks) : 0;
      pages.touched = true;
      return;
    }
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    ::signal(signal, SIG_DFL); // the access is tried again
  } else {
    previous.sa_handler(signal);
  }
}

// Python's faulthandler may have been switched on since.
void handle_faults() {
  struct sigaction now {};
  sigaction(SIGSEGV, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == &on_fault) {
    return;
  }
  previous = now;
  struct sigaction ours {};
  ours.sa_sigaction = &on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &ours, nullptr);
}

} // namespace

std::optional<Guard> Guard::watch(uintptr_t start, size_t bytes, bool writes_only, bool stacks) {
  handle_faults();
  for (size_t slot = 0; slot < watched.size(); ++slot) {
    Watched& pages = watched[slot];
    if (pages.start == 0) {
      pages.bytes = bytes;
      pages.stacks = stacks;
      pages.touched = false;
      pages.start = start;
      if (mprotect(reinterpret_cast<void*>(start), bytes, writes_only ? PROT_READ : PROT_NONE) != 0) {
        pages.start = 0;
        return std::nullopt;
      }
      return Guard(slot);
    }
  }
  return std::nullopt;
}

std::optional<uint32_t> Guard::release() const {
  Watched& pages = watched[slot_];
  open(pages, pages.start);
  pages.start = 0;
  return pages.touched ? std::optional<uint32_t>(pages.site) : std::nullopt;
}

} // namespace virtual_npu::order
