// SPDX-License-Identifier: Apache-2.0
//
// See hccl_wire.h.
//
// Every step posts, for each peer, a header (what this rank calls and how many bytes it sends there) and the bytes
// themselves. The bytes travel under a tag made from the call and their number, so that they only ever meet a receiver
// that expects exactly them; the header is read first and says what is wrong if they do not meet. A rank that finds such a
// thing says farewell before it closes its connections, so that the others find it, too, and not just a closed connection.
#include "hccl_wire.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "alias.h"
#include "graph.h"

namespace virtual_npu {
namespace {

struct Header {
  uint64_t step;
  uint64_t bytes;
  char call[240];
};

// Behind the header where order is checked; unused entries are zero.
constexpr size_t kMostCalls = 32;

// Tags of the links are non-negative ints. Steps of collectives, messages and bytes have ranges of their own.
constexpr int kStepTag = 0x10000000;
constexpr int kFarewellTag = 0x10000001;
constexpr int kMessageTags = 0x20000000;
constexpr int kByteTags = 0x40000000;
constexpr int kTagMask = 0x0FFFFFFF;

// How long a rank that found a mismatch waits for the others to have read its headers: they may be late to the call, and one
// that met no mismatch never answers.
constexpr Milliseconds kFarewell(5000);

std::string message(int tag) {
  return c10::str("message ", tag);
}

int byte_tag(const std::string& call, uint64_t bytes) {
  const size_t hash = std::hash<std::string>()(call) * 31 + bytes * 0x9E3779B97F4A7C15u;
  return kByteTags | static_cast<int>((hash >> 17) & 0x3FFFFFFF);
}

int64_t header_bytes() {
  return static_cast<int64_t>(sizeof(Header) + (order::enabled() ? kMostCalls * sizeof(order::Calls) : 0));
}

at::Tensor make_header(
    uint64_t step, const std::string& call, uint64_t bytes, const std::vector<order::Calls>& calls = {}) {
  at::Tensor tensor = at::zeros({header_bytes()}, at::kByte);
  auto* header = reinterpret_cast<Header*>(tensor.mutable_data_ptr<uint8_t>());
  header->step = step;
  header->bytes = bytes;
  std::strncpy(header->call, call.c_str(), sizeof(header->call) - 1);
  if (order::enabled() && !calls.empty()) {
    std::memcpy(header + 1, calls.data(), std::min(calls.size(), kMostCalls) * sizeof(order::Calls));
  }
  return tensor;
}

std::vector<order::Calls> calls_in(const at::Tensor& header) {
  std::vector<order::Calls> calls(order::enabled() ? kMostCalls : 0);
  if (!calls.empty()) {
    std::memcpy(calls.data(), header.const_data_ptr<uint8_t>() + sizeof(Header), kMostCalls * sizeof(order::Calls));
  }
  return calls;
}

at::Tensor empty_header() {
  return at::empty({header_bytes()}, at::kByte);
}

Header read_header(const at::Tensor& tensor) {
  Header header;
  std::memcpy(&header, tensor.const_data_ptr<uint8_t>(), sizeof(header));
  header.call[sizeof(header.call) - 1] = '\0';
  return header;
}

uint64_t size_of(const at::Tensor& bytes) {
  return bytes.defined() ? static_cast<uint64_t>(bytes.numel()) : 0;
}

bool is_timeout(const std::exception& error) {
  const std::string text = error.what();
  return text.find("imed out") != std::string::npos || text.find("imeout") != std::string::npos;
}

std::string seconds(Milliseconds timeout) {
  return c10::str(static_cast<double>(timeout.count()) / 1000.0, " s");
}

} // namespace

at::Tensor bytes_of(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == c10::kStrided, "hccl moves dense tensors only, not ", tensor.layout());
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), "Tensors must be contiguous");
  const bool replayed = tensor.device().type() == kNPU && !GraphStream(tensor.device()).runs();
  const at::Tensor host = replayed ? borrowed_alias(tensor) : owning_alias(tensor);
  const auto item = static_cast<int64_t>(tensor.element_size());
  at::Tensor bytes = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(host.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<uint8_t>());
  const int64_t length = tensor.numel() * item;
  const int64_t stride = 1;
  bytes.unsafeGetTensorImpl()->set_sizes_and_strides(
      c10::IntArrayRef(length), c10::IntArrayRef(stride), tensor.storage_offset() * item);
  return bytes;
}

Wire::Wire(c10::intrusive_ptr<c10d::Backend> links, int rank, int size, std::vector<int64_t> global_ranks)
    : rank_(rank), size_(size), global_ranks_(std::move(global_ranks)), links_(std::move(links)) {}

std::string Wire::name(int peer) const {
  const auto index = static_cast<size_t>(peer);
  return c10::str("rank ", index < global_ranks_.size() ? global_ranks_[index] : peer);
}

c10::intrusive_ptr<c10d::Backend> Wire::links(const std::string& call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(failure_.empty(), "hccl ", call, " on ", name(rank_), ": this group failed before: ", failure_);
  return links_;
}

void Wire::fail(const std::string& call, const std::string& reason) {
  const std::string message = c10::str("hccl ", call, " on ", name(rank_), ": ", reason);
  c10::intrusive_ptr<c10d::Backend> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.empty()) {
      failure_ = message;
    }
    dropped = std::move(links_); // closing the connections ends the others' waiting for this rank
    links_.reset();
  }
  dropped.reset();
  TORCH_CHECK_WITH(DistBackendError, false, message);
}

void Wire::abort() {
  Works works;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.empty()) {
      failure_ = "it was shut down";
    }
    works = waiting_;
  }
  for (const auto& work : works) {
    work->abort();
  }
}

c10::intrusive_ptr<c10d::Work> Wire::post_send(
    const c10::intrusive_ptr<c10d::Backend>& links, at::Tensor bytes, int peer, int tag) {
  std::vector<at::Tensor> tensors{std::move(bytes)};
  return links->send(tensors, peer, tag);
}

c10::intrusive_ptr<c10d::Work> Wire::post_recv(
    const c10::intrusive_ptr<c10d::Backend>& links, at::Tensor bytes, int peer, int tag) {
  std::vector<at::Tensor> tensors{std::move(bytes)};
  return peer < 0 ? links->recvAnysource(tensors, tag) : links->recv(tensors, peer, tag);
}

void Wire::wait(const c10::intrusive_ptr<c10d::Work>& work, Deadline deadline) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(work);
  }
  const auto done = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), work));
  };
  const auto left = std::chrono::duration_cast<Milliseconds>(deadline - std::chrono::steady_clock::now());
  bool completed = false;
  try {
    completed = work->wait(std::max(left, Milliseconds(1)));
  } catch (...) {
    done();
    throw;
  }
  done();
  TORCH_CHECK(completed, "it was shut down");
}

// A connection that is closed while bytes in it are unread is reset, and what the other side had not read yet is lost there:
// this rank's header, of all things. So each rank tells the others that it has read theirs, and closes once they have
// told it the same, or went away, or the time is over.
void Wire::say_farewell(const c10::intrusive_ptr<c10d::Backend>& links, std::vector<Peer>& peers) {
  const Deadline deadline = std::chrono::steady_clock::now() + kFarewell;
  Works farewells;
  const auto tell = [&](const Peer& peer) {
    try {
      farewells.push_back(post_recv(links, empty_header(), peer.rank, kFarewellTag));
      farewells.push_back(post_send(links, make_header(0, "farewell", 0), peer.rank, kFarewellTag));
    } catch (const std::exception&) { // that rank is gone: nothing to wait for
    }
  };
  for (const Peer& peer : peers) {
    if (peer.header_read) {
      tell(peer);
    }
  }
  for (const Peer& peer : peers) {
    if (!peer.header_read && peer.header_arrives) {
      try {
        wait(peer.header_arrives, deadline);
        tell(peer);
      } catch (const std::exception&) {
      }
    }
  }
  for (const auto& farewell : farewells) {
    try {
      wait(farewell, deadline);
    } catch (const std::exception&) {
    }
  }
}

void Wire::exchange(
    const std::string& call,
    const std::vector<at::Tensor>& sends,
    const std::vector<at::Tensor>& recvs,
    Milliseconds timeout) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  auto links = this->links(call);
  const Deadline deadline = std::chrono::steady_clock::now() + timeout;
  const uint64_t step = step_++;

  std::vector<Peer> peers;
  Works sending;
  std::string trouble;
  bool mismatch = false;
  try {
    for (int offset = 1; offset < size_; ++offset) {
      Peer peer{(rank_ + offset) % size_, empty_header(), {}, {}, false};
      peer.header_arrives = post_recv(links, peer.header, peer.rank, kStepTag);
      if (const uint64_t expected = size_of(recvs[peer.rank])) {
        peer.bytes_arrive = post_recv(links, recvs[peer.rank], peer.rank, byte_tag(call, expected));
      }
      peers.push_back(std::move(peer));
    }
    for (const Peer& peer : peers) {
      const uint64_t sent = size_of(sends[peer.rank]);
      sending.push_back(post_send(links, make_header(step, call, sent, calls_), peer.rank, kStepTag));
      if (sent != 0) {
        sending.push_back(post_send(links, sends[peer.rank], peer.rank, byte_tag(call, sent)));
      }
    }
  } catch (const std::exception& error) {
    trouble = c10::str("a connection is lost: ", error.what());
  }

  for (Peer& peer : peers) {
    if (!peer.header_arrives) {
      continue;
    }
    try {
      wait(peer.header_arrives, deadline);
    } catch (const std::exception& error) {
      if (trouble.empty()) {
        trouble = is_timeout(error)
            ? c10::str(name(peer.rank), " did not make this call within ", seconds(timeout))
            : c10::str(name(peer.rank), " is gone (", c10::str(error.what()).substr(0, 200), ")");
      }
      continue;
    }
    peer.header_read = true;
    const Header theirs = read_header(peer.header);
    const uint64_t expected = size_of(recvs[peer.rank]);
    mismatch = call != theirs.call || step != theirs.step || theirs.bytes != expected;
    if (call != theirs.call || step != theirs.step) {
      trouble = c10::str(
          name(peer.rank), " called ", theirs.call, " as step ", theirs.step, ", ", name(rank_), " called ", call,
          " as step ", step, "; all ranks of a group must make the same calls in the same order");
      break;
    }
    if (theirs.bytes != expected) {
      trouble = c10::str(
          name(peer.rank), " sends ", theirs.bytes, " bytes to ", name(rank_), ", which expects ", expected);
      break;
    }
    if (order::enabled() && trouble.empty()) {
      trouble = order::compare_calls(calls_, calls_in(peer.header), name(rank_), name(peer.rank));
      mismatch = !trouble.empty();
      if (mismatch) {
        break;
      }
    }
  }
  if (trouble.empty()) {
    const Peer* current = nullptr;
    try {
      for (const Peer& peer : peers) {
        current = &peer;
        if (peer.bytes_arrive) {
          wait(peer.bytes_arrive, deadline);
        }
      }
      for (const auto& work : sending) {
        wait(work, deadline);
      }
    } catch (const std::exception& error) {
      trouble = is_timeout(error)
          ? c10::str("the data of ", name(current->rank), " did not arrive within ", seconds(timeout))
          : c10::str(name(current->rank), " went away during the call (", c10::str(error.what()).substr(0, 200), ")");
    }
  }
  if (mismatch) {
    say_farewell(links, peers);
  }
  if (!trouble.empty()) {
    // What is still posted holds the connections open, and open connections let the others wait for this rank.
    peers.clear();
    sending.clear();
    links.reset();
    fail(call, trouble);
  }
  if (size_of(recvs[rank_]) != 0) {
    std::memmove(
        recvs[rank_].mutable_data_ptr<uint8_t>(), sends[rank_].const_data_ptr<uint8_t>(), size_of(recvs[rank_]));
  }
}

// Messages between two ranks ------------------------------------------------------------------------------------------

class SendWork final : public c10d::Work {
 public:
  SendWork(std::shared_ptr<Wire> wire, std::string call, int peer, Milliseconds timeout, Wire::Works works)
      : Work(wire->rank_, c10d::OpType::SEND),
        wire_(std::move(wire)),
        call_(std::move(call)),
        peer_(peer),
        timeout_(timeout),
        works_(std::move(works)) {}

  bool isCompleted() override {
    return completed_;
  }

  bool wait(Milliseconds timeout) override {
    const Milliseconds limit = timeout == kNoTimeout ? timeout_ : timeout;
    const Deadline deadline = std::chrono::steady_clock::now() + limit;
    try {
      for (const auto& work : works_) {
        wire_->wait(work, deadline);
      }
    } catch (const std::exception& error) {
      wire_->fail(
          call_,
          is_timeout(error) ? c10::str(wire_->name(peer_), " did not receive it within ", seconds(limit))
                            : c10::str(wire_->name(peer_), " is gone (", c10::str(error.what()).substr(0, 200), ")"));
    }
    completed_ = true;
    return true;
  }

 private:
  const std::shared_ptr<Wire> wire_;
  const std::string call_;
  const int peer_;
  const Milliseconds timeout_;
  const Wire::Works works_;
};

class RecvWork final : public c10d::Work {
 public:
  RecvWork(std::shared_ptr<Wire> wire, std::string call, at::Tensor bytes, int peer, int tag, Milliseconds timeout)
      : Work(wire->rank_, peer < 0 ? c10d::OpType::RECVANYSOURCE : c10d::OpType::RECV),
        wire_(std::move(wire)),
        call_(std::move(call)),
        bytes_(std::move(bytes)),
        peer_(peer),
        tag_(tag),
        timeout_(timeout),
        header_(empty_header()) {
    const auto links = wire_->links(call_);
    header_arrives_ = wire_->post_recv(links, header_, peer, kMessageTags | tag);
    if (peer >= 0) {
      post_bytes(links);
    }
  }

  bool isCompleted() override {
    return completed_;
  }

  int sourceRank() const override {
    return peer_;
  }

  bool wait(Milliseconds timeout) override {
    if (completed_) {
      return true;
    }
    const Milliseconds limit = timeout == kNoTimeout ? timeout_ : timeout;
    const Deadline deadline = std::chrono::steady_clock::now() + limit;
    std::string trouble;
    try {
      wire_->wait(header_arrives_, deadline);
      if (peer_ < 0) {
        peer_ = header_arrives_->sourceRank();
        post_bytes(wire_->links(call_));
      }
      const Header header = read_header(header_);
      if (header.bytes != size_of(bytes_)) {
        trouble = c10::str(
            wire_->name(peer_), " sends ", header.bytes, " bytes, the receiving tensor has ", size_of(bytes_));
      } else if (bytes_arrive_) {
        wire_->wait(bytes_arrive_, deadline);
      }
    } catch (const std::exception& error) {
      const std::string source = peer_ < 0 ? "any rank" : wire_->name(peer_);
      trouble = is_timeout(error) ? c10::str(source, " did not send within ", seconds(limit))
                                  : c10::str(source, " is gone (", c10::str(error.what()).substr(0, 200), ")");
    }
    if (!trouble.empty()) {
      wire_->fail(call_, trouble);
    }
    completed_ = true;
    return true;
  }

 private:
  void post_bytes(const c10::intrusive_ptr<c10d::Backend>& links) {
    if (const uint64_t bytes = size_of(bytes_)) {
      bytes_arrive_ = wire_->post_recv(links, bytes_, peer_, byte_tag(message(tag_), bytes));
    }
  }

  const std::shared_ptr<Wire> wire_;
  const std::string call_;
  const at::Tensor bytes_;
  int peer_;
  const int tag_;
  const Milliseconds timeout_;
  const at::Tensor header_;
  c10::intrusive_ptr<c10d::Work> header_arrives_;
  c10::intrusive_ptr<c10d::Work> bytes_arrive_;
};

c10::intrusive_ptr<c10d::Work> Wire::send(const at::Tensor& tensor, int peer, int tag, Milliseconds timeout) {
  const std::string call = c10::str("send to ", name(peer));
  TORCH_CHECK(tag >= 0 && tag <= kTagMask, "tag ", tag, " is outside of 0 to ", kTagMask);
  TORCH_CHECK(peer >= 0 && peer < size_ && peer != rank_, "hccl send from group rank ", rank_, " to group rank ", peer);
  const auto links = this->links(call);
  const at::Tensor bytes = bytes_of(tensor);
  Works works;
  try {
    works.push_back(post_send(links, make_header(0, call, size_of(bytes)), peer, kMessageTags | tag));
    if (size_of(bytes) != 0) {
      works.push_back(post_send(links, bytes, peer, byte_tag(message(tag), size_of(bytes))));
    }
  } catch (const std::exception& error) {
    fail(call, c10::str(name(peer), " is gone (", c10::str(error.what()).substr(0, 200), ")"));
  }
  return c10::make_intrusive<SendWork>(shared_from_this(), call, peer, timeout, std::move(works));
}

c10::intrusive_ptr<c10d::Work> Wire::recv(const at::Tensor& tensor, int peer, int tag, Milliseconds timeout) {
  const std::string call = c10::str("recv from ", peer < 0 ? "any rank" : name(peer));
  TORCH_CHECK(tag >= 0 && tag <= kTagMask, "tag ", tag, " is outside of 0 to ", kTagMask);
  TORCH_CHECK(peer < size_ && peer != rank_, "hccl recv on group rank ", rank_, " from group rank ", peer);
  links(call); // raises if the group failed before
  try {
    return c10::make_intrusive<RecvWork>(shared_from_this(), call, bytes_of(tensor), peer, tag, timeout);
  } catch (const std::exception& error) {
    fail(call, c10::str(peer < 0 ? "a rank" : name(peer), " is gone (", c10::str(error.what()).substr(0, 200), ")"));
  }
}

} // namespace virtual_npu
