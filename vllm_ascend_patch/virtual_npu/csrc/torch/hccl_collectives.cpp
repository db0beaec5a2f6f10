// SPDX-License-Identifier: Apache-2.0
//
// The collectives of the backend (hccl_backend.h): which bytes go where, and what is computed from them.
#include "hccl_backend.h"

#include <ATen/ops/empty.h>

#include <numeric>

#include "hccl_reduce.h"

namespace virtual_npu {
namespace {

// Up to this size an all-reduce sends everything to everyone; above it, ranks reduce a share each and gather the shares.
constexpr int64_t kAllToAllBytes = 64 * 1024;

const at::Tensor& single(const Tensors& tensors) {
  TORCH_CHECK(tensors.size() == 1, "hccl takes one tensor per rank, not ", tensors.size());
  return tensors.front();
}

std::string type_of(const at::Tensor& tensor) {
  return c10::toString(tensor.scalar_type());
}

// `tensor` as a flat host tensor over the same memory.
at::Tensor flat(const at::Tensor& tensor) {
  return bytes_of(tensor).view(tensor.scalar_type());
}

at::Tensor rows_like(const at::Tensor& flat, int64_t rows, int64_t columns) {
  return at::empty({rows, columns}, flat.options());
}

// Byte views of the rows of a matrix or of consecutive pieces of a flat tensor.
Tensors bytes_of_rows(const at::Tensor& rows) {
  Tensors parts;
  for (int64_t i = 0; i < rows.size(0); ++i) {
    parts.push_back(bytes_of(rows[i]));
  }
  return parts;
}

Tensors bytes_of_pieces(const at::Tensor& flat, const std::vector<int64_t>& lengths) {
  Tensors parts;
  int64_t start = 0;
  for (const int64_t length : lengths) {
    parts.push_back(bytes_of(flat.narrow(0, start, length)));
    start += length;
  }
  return parts;
}

Tensors bytes_of_all(const Tensors& tensors) {
  Tensors parts;
  parts.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    parts.push_back(bytes_of(tensor));
  }
  return parts;
}

// Elements per rank from `splits` (along the first dimension; empty: equal parts).
std::vector<int64_t> split_lengths(const at::Tensor& tensor, const std::vector<int64_t>& splits, int size, const char* what) {
  const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  if (splits.empty()) {
    TORCH_CHECK(
        rows % size == 0, "Tensor's dim 0 does not divide equally across group size: ", what, " has ", rows, " rows for ",
        size, " ranks");
    return std::vector<int64_t>(size, tensor.numel() / size);
  }
  TORCH_CHECK(
      static_cast<int>(splits.size()) == size, "Number of tensor splits not equal to group size: ", what, " has ",
      splits.size(), " splits for ", size, " ranks");
  const int64_t sum = std::accumulate(splits.begin(), splits.end(), int64_t{0});
  TORCH_CHECK(
      sum == rows, "Split sizes doesn't match total dim 0 size: the splits of ", what, " sum to ", sum, ", it has ", rows,
      " rows");
  const int64_t row = rows == 0 ? 0 : tensor.numel() / rows;
  std::vector<int64_t> lengths;
  for (const int64_t split : splits) {
    TORCH_CHECK(split >= 0, "a split of ", what, " is negative: ", split);
    lengths.push_back(split * row);
  }
  return lengths;
}

void check_same_type(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(
      a.scalar_type() == b.scalar_type(), "hccl needs one data type for input and output, not ", b.scalar_type(), " and ",
      a.scalar_type());
}

} // namespace

WorkPtr HcclBackend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  const at::Tensor tensor = single(tensors);
  const auto root = static_cast<int>(options.rootRank);
  const at::Tensor bytes = bytes_of(tensor);
  return call(c10d::OpType::BROADCAST, options, tensors, tensors, [=, this, type = type_of(tensor)](Milliseconds timeout) {
    Tensors sends(size_), recvs(size_);
    if (rank_ == root) {
      sends.assign(size_, bytes);
    } else {
      recvs[root] = bytes;
    }
    wire_->exchange(c10::str("broadcast(", type, ", from group rank ", root, ")"), sends, recvs, timeout);
  });
}

HcclBackend::Job HcclBackend::allreduce_job(const at::Tensor& tensor, const c10d::ReduceOp& op) const {
  const std::string name = c10::str("all_reduce(", type_of(tensor), ", ", reduce_name(op, tensor.scalar_type()), ")");
  return [=, this, values = flat(tensor), mine = bytes_of(tensor)](Milliseconds timeout) {
    const int64_t count = values.numel();
    if (mine.numel() <= kAllToAllBytes || count < size_) {
      const at::Tensor rows = rows_like(values, size_, count);
      wire_->exchange(name, Tensors(size_, mine), bytes_of_rows(rows), timeout);
      values.copy_(reduce_rows(rows, op));
      return;
    }
    std::vector<int64_t> shares(size_, count / size_);
    for (int64_t i = 0; i < count % size_; ++i) {
      ++shares[i];
    }
    const at::Tensor rows = rows_like(values, size_, shares[rank_]);
    wire_->exchange(name, bytes_of_pieces(values, shares), bytes_of_rows(rows), timeout);
    const at::Tensor share = reduce_rows(rows, op);
    wire_->exchange(name, Tensors(size_, bytes_of(share)), bytes_of_pieces(values, shares), timeout);
  };
}

WorkPtr HcclBackend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  return call(c10d::OpType::ALLREDUCE, options, tensors, tensors, allreduce_job(single(tensors), options.reduceOp));
}

WorkPtr HcclBackend::allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) {
  std::vector<Job> jobs;
  for (const at::Tensor& tensor : tensors) {
    jobs.push_back(allreduce_job(tensor, options.reduceOp));
  }
  return call(c10d::OpType::ALLREDUCE_COALESCED, options, tensors, tensors, [jobs](Milliseconds timeout) {
    for (const Job& job : jobs) {
      job(timeout);
    }
  });
}

WorkPtr HcclBackend::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  const at::Tensor tensor = single(tensors);
  const auto root = static_cast<int>(options.rootRank);
  const c10d::ReduceOp op = options.reduceOp;
  const std::string name = c10::str(
      "reduce(", type_of(tensor), ", ", reduce_name(op, tensor.scalar_type()), ", to group rank ", root, ")");
  return call(
      c10d::OpType::REDUCE, options, tensors, rank_ == root ? tensors : Tensors(),
      [=, this, values = flat(tensor), mine = bytes_of(tensor)](Milliseconds timeout) {
        Tensors sends(size_), recvs(size_);
        sends[root] = mine;
        at::Tensor rows;
        if (rank_ == root) {
          rows = rows_like(values, size_, values.numel());
          recvs = bytes_of_rows(rows);
        }
        wire_->exchange(name, sends, recvs, timeout);
        if (rank_ == root) {
          values.copy_(reduce_rows(rows, op));
        }
      });
}

HcclBackend::Job HcclBackend::allgather_job(const std::string& name, Tensors outputs, const at::Tensor& input) const {
  TORCH_CHECK(
      static_cast<int>(outputs.size()) == size_, "hccl ", name, " needs ", size_, " output tensors, one per rank, not ",
      outputs.size());
  for (const at::Tensor& output : outputs) {
    check_same_type(output, input);
  }
  return [=, this, call = c10::str(name, "(", type_of(input), ")"), mine = bytes_of(input),
          parts = bytes_of_all(outputs)](Milliseconds timeout) {
    wire_->exchange(call, Tensors(size_, mine), parts, timeout);
  };
}

WorkPtr HcclBackend::allgather(
    std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) {
  TORCH_CHECK(outputs.size() == 1, "hccl takes one list of output tensors, not ", outputs.size());
  return call(
      c10d::OpType::ALLGATHER, options, inputs, outputs.front(), allgather_job("all_gather", outputs.front(), single(inputs)));
}

WorkPtr HcclBackend::_allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) {
  TORCH_CHECK(
      output.numel() == input.numel() * size_,
      "output tensor size must be equal to world_size times input tensor size: ", output.numel(), " is not ", size_,
      " times ", input.numel());
  const Tensors parts = flat(output).chunk(size_);
  return call(
      c10d::OpType::_ALLGATHER_BASE, options, {input}, {output},
      allgather_job("all_gather_into_tensor", output.numel() == 0 ? Tensors(size_, flat(output)) : parts, input));
}

WorkPtr HcclBackend::allgather_uneven(
    const at::Tensor& output, const at::Tensor& input, std::vector<int64_t> output_splits) {
  Tensors parts;
  const at::Tensor values = flat(output);
  int64_t start = 0;
  for (const int64_t length : split_lengths(output, output_splits, size_, "the output")) {
    parts.push_back(values.narrow(0, start, length));
    start += length;
  }
  return call(
      c10d::OpType::_ALLGATHER_BASE, c10d::AllgatherOptions(), {input}, {output},
      allgather_job("all_gather_into_tensor_uneven", parts, input));
}

WorkPtr HcclBackend::allgather_coalesced(
    std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) {
  // outputs[rank][i] receives inputs[i] of that rank.
  std::vector<Job> jobs;
  Tensors all;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensors parts;
    for (const Tensors& of_rank : outputs) {
      TORCH_CHECK(of_rank.size() == inputs.size(), "hccl all_gather_coalesced needs an output per rank and input");
      parts.push_back(of_rank[i]);
    }
    all.insert(all.end(), parts.begin(), parts.end());
    jobs.push_back(allgather_job("all_gather_coalesced", parts, inputs[i]));
  }
  return call(c10d::OpType::ALLGATHER_COALESCED, options, inputs, all, [jobs](Milliseconds timeout) {
    for (const Job& job : jobs) {
      job(timeout);
    }
  });
}

WorkPtr HcclBackend::allgather_into_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) {
  TORCH_CHECK(outputs.size() == inputs.size(), "hccl needs as many outputs as inputs");
  std::vector<Job> jobs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(outputs[i].numel() == inputs[i].numel() * size_, "output ", i, " must have world_size times input ", i);
    const at::Tensor values = flat(outputs[i]);
    jobs.push_back(allgather_job(
        "all_gather_into_tensor_coalesced", values.numel() == 0 ? Tensors(size_, values) : values.chunk(size_), inputs[i]));
  }
  return call(c10d::OpType::COALESCED, options, inputs, outputs, [jobs](Milliseconds timeout) {
    for (const Job& job : jobs) {
      job(timeout);
    }
  });
}

WorkPtr HcclBackend::gather(
    std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) {
  const at::Tensor input = single(inputs);
  const auto root = static_cast<int>(options.rootRank);
  Tensors results;
  if (rank_ == root) {
    TORCH_CHECK(
        outputs.size() == 1 && static_cast<int>(outputs.front().size()) == size_, "hccl gather needs a list of ", size_,
        " output tensors on the destination rank");
    results = outputs.front();
  }
  return call(
      c10d::OpType::GATHER, options, inputs, results,
      [=, this, mine = bytes_of(input), parts = bytes_of_all(results), type = type_of(input)](Milliseconds timeout) {
        Tensors sends(size_);
        sends[root] = mine;
        wire_->exchange(
            c10::str("gather(", type, ", to group rank ", root, ")"), sends, rank_ == root ? parts : Tensors(size_),
            timeout);
      });
}

WorkPtr HcclBackend::scatter(
    Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) {
  const at::Tensor output = single(outputs);
  const auto root = static_cast<int>(options.rootRank);
  Tensors sources;
  if (rank_ == root) {
    TORCH_CHECK(
        inputs.size() == 1 && static_cast<int>(inputs.front().size()) == size_, "hccl scatter needs a list of ", size_,
        " input tensors on the source rank");
    sources = inputs.front();
  }
  return call(
      c10d::OpType::SCATTER, options, sources, outputs,
      [=, this, mine = bytes_of(output), parts = bytes_of_all(sources), type = type_of(output)](Milliseconds timeout) {
        Tensors recvs(size_);
        recvs[root] = mine;
        wire_->exchange(
            c10::str("scatter(", type, ", from group rank ", root, ")"), rank_ == root ? parts : Tensors(size_), recvs,
            timeout);
      });
}

HcclBackend::Job HcclBackend::reduce_scatter_job(
    const at::Tensor& output, Tensors inputs, const c10d::ReduceOp& op) const {
  TORCH_CHECK(
      static_cast<int>(inputs.size()) == size_, "hccl reduce_scatter needs ", size_, " input tensors, one per rank, not ",
      inputs.size());
  for (const at::Tensor& input : inputs) {
    check_same_type(output, input);
  }
  TORCH_CHECK(
      inputs[rank_].numel() == output.numel(), "hccl reduce_scatter: the output has ", output.numel(),
      " elements, this rank's input ", inputs[rank_].numel());
  const std::string name =
      c10::str("reduce_scatter(", type_of(output), ", ", reduce_name(op, output.scalar_type()), ")");
  return [=, this, result = flat(output), parts = bytes_of_all(inputs)](Milliseconds timeout) {
    const at::Tensor rows = rows_like(result, size_, result.numel());
    wire_->exchange(name, parts, bytes_of_rows(rows), timeout);
    result.copy_(reduce_rows(rows, op));
  };
}

WorkPtr HcclBackend::reduce_scatter(
    Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK(inputs.size() == 1, "hccl takes one list of input tensors, not ", inputs.size());
  return call(
      c10d::OpType::REDUCE_SCATTER, options, inputs.front(), outputs,
      reduce_scatter_job(single(outputs), inputs.front(), options.reduceOp));
}

WorkPtr HcclBackend::_reduce_scatter_base(
    at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK(
      input.numel() == output.numel() * size_,
      "input tensor must be the same size as output size times world size: ", input.numel(), " is not ", size_, " times ",
      output.numel());
  const at::Tensor values = flat(input);
  return call(
      c10d::OpType::_REDUCE_SCATTER_BASE, options, {input}, {output},
      reduce_scatter_job(output, values.numel() == 0 ? Tensors(size_, values) : values.chunk(size_), options.reduceOp));
}

WorkPtr HcclBackend::reduce_scatter_uneven(
    const at::Tensor& output,
    const at::Tensor& input,
    std::vector<int64_t> input_splits,
    const c10d::ReduceScatterOptions& options) {
  Tensors parts;
  const at::Tensor values = flat(input);
  int64_t start = 0;
  for (const int64_t length : split_lengths(input, input_splits, size_, "the input")) {
    parts.push_back(values.narrow(0, start, length));
    start += length;
  }
  return call(
      c10d::OpType::_REDUCE_SCATTER_BASE, options, {input}, {output}, reduce_scatter_job(output, parts, options.reduceOp));
}

WorkPtr HcclBackend::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK(outputs.size() == inputs.size(), "hccl needs as many outputs as inputs");
  std::vector<Job> jobs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(inputs[i].numel() == outputs[i].numel() * size_, "input ", i, " must have world_size times output ", i);
    const at::Tensor values = flat(inputs[i]);
    jobs.push_back(reduce_scatter_job(
        outputs[i], values.numel() == 0 ? Tensors(size_, values) : values.chunk(size_), options.reduceOp));
  }
  return call(c10d::OpType::COALESCED, options, inputs, outputs, [jobs](Milliseconds timeout) {
    for (const Job& job : jobs) {
      job(timeout);
    }
  });
}

WorkPtr HcclBackend::alltoall_base(
    at::Tensor& output,
    at::Tensor& input,
    std::vector<int64_t>& output_splits,
    std::vector<int64_t>& input_splits,
    const c10d::AllToAllOptions& options) {
  check_same_type(output, input);
  const Tensors sends = bytes_of_pieces(flat(input), split_lengths(input, input_splits, size_, "the input"));
  const Tensors recvs = bytes_of_pieces(flat(output), split_lengths(output, output_splits, size_, "the output"));
  return call(
      c10d::OpType::ALLTOALL_BASE, options, {input}, {output}, [=, this, type = type_of(input)](Milliseconds timeout) {
        wire_->exchange(c10::str("all_to_all_single(", type, ")"), sends, recvs, timeout);
      });
}

WorkPtr HcclBackend::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) {
  TORCH_CHECK(
      static_cast<int>(outputs.size()) == size_ && static_cast<int>(inputs.size()) == size_,
      "hccl all_to_all needs ", size_, " inputs and outputs, one per rank, not ", inputs.size(), " and ", outputs.size());
  check_same_type(outputs.front(), inputs.front());
  const Tensors sends = bytes_of_all(inputs);
  const Tensors recvs = bytes_of_all(outputs);
  return call(
      c10d::OpType::ALLTOALL, options, inputs, outputs, [=, this, type = type_of(inputs.front())](Milliseconds timeout) {
        wire_->exchange(c10::str("all_to_all(", type, ")"), sends, recvs, timeout);
      });
}

WorkPtr HcclBackend::barrier(const c10d::BarrierOptions& options) {
  return call(c10d::OpType::BARRIER, options, {}, {}, [this](Milliseconds timeout) {
    wire_->exchange("barrier()", Tensors(size_), Tensors(size_), timeout);
  });
}

} // namespace virtual_npu
