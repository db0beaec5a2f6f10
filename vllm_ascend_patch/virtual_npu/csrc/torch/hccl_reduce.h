// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of reducing collectives, on host tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include <string>

namespace virtual_npu {

// "SUM", "MAX", ... Raises for an operation or a data type that HCCL does not reduce.
std::string reduce_name(const c10d::ReduceOp& op, c10::ScalarType type);

// Reduce `rows` [ranks, n] over the ranks into [n], half types in float32, in the order of the ranks: the same bits
// everywhere.
at::Tensor reduce_rows(const at::Tensor& rows, const c10d::ReduceOp& op);

} // namespace virtual_npu
