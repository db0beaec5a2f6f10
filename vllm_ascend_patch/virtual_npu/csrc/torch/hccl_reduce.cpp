// SPDX-License-Identifier: Apache-2.0
//
// See hccl_reduce.h.
#include "hccl_reduce.h"

#include <ATen/ops/all.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/any.h>
#include <ATen/ops/prod.h>
#include <ATen/ops/sum.h>

namespace virtual_npu {

std::string reduce_name(const c10d::ReduceOp& op, c10::ScalarType type) {
  TORCH_CHECK(
      !c10::isComplexType(type) && !c10::isFloat8Type(type) && !c10::isQIntType(type),
      "hccl does not reduce ",
      type,
      " tensors");
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      return "SUM";
    case c10d::ReduceOp::AVG:
      TORCH_CHECK(c10::isFloatingType(type), "ReduceOp.AVG needs a floating point type, not ", type);
      return "AVG";
    case c10d::ReduceOp::PRODUCT:
      return "PRODUCT";
    case c10d::ReduceOp::MIN:
      return "MIN";
    case c10d::ReduceOp::MAX:
      return "MAX";
    default:
      TORCH_CHECK(false, "Unsupported HCCL reduce op ", static_cast<int>(op.op_), "; it has SUM, AVG, PRODUCT, MIN and MAX");
  }
}

at::Tensor reduce_rows(const at::Tensor& rows, const c10d::ReduceOp& op) {
  const auto type = rows.scalar_type();
  const bool is_bool = type == at::kBool;
  switch (op.op_) {
    case c10d::ReduceOp::PRODUCT:
      return is_bool ? at::all(rows, 0) : at::prod(rows, 0, /*keepdim=*/false, type);
    case c10d::ReduceOp::MIN:
      return is_bool ? at::all(rows, 0) : at::amin(rows, 0);
    case c10d::ReduceOp::MAX:
      return is_bool ? at::any(rows, 0) : at::amax(rows, 0);
    default: {
      if (is_bool) {
        return at::any(rows, 0);
      }
      const bool half = type == at::kHalf || type == at::kBFloat16;
      at::Tensor sum = at::sum(rows, 0, /*keepdim=*/false, half ? at::kFloat : type);
      if (op.op_ == c10d::ReduceOp::AVG) {
        sum.div_(rows.size(0));
      }
      return sum.to(type);
    }
  }
}

} // namespace virtual_npu
