// SPDX-License-Identifier: Apache-2.0
//
// See graph_call.h.
#include "graph_call.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>
#include <memory>

namespace virtual_npu {
namespace {

using torch::jit::Stack;

void append_tensors(const c10::IValue& value, std::vector<at::Tensor>& found) {
  if (value.isTensor()) {
    found.push_back(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      found.push_back(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      found.push_back(tensor.value_or(at::Tensor()));
    }
  }
}

// Values on the host are part of a captured call: what becomes of them later is not seen, as with a kernel's arguments. A
// program that changes one and replays the graph has most likely forgotten that, so the replay refuses.
bool is_value(const at::Tensor& tensor, const AliasTable& aliases) {
  return tensor.defined() && tensor.dim() == 0 && !aliases.has_storage_of(tensor);
}

} // namespace

std::vector<at::Tensor> tensors_in(const Stack& values, size_t first) {
  std::vector<at::Tensor> found;
  for (size_t i = first; i < values.size(); ++i) {
    append_tensors(values[i], found);
  }
  return found;
}

GraphCall::GraphCall(
    const c10::OperatorHandle& op, Stack arguments, const std::vector<bool>& written, const AliasTable& aliases)
    : op_(op), arguments_(std::move(arguments)) {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (arguments_[i].isTensor() && is_value(arguments_[i].toTensor(), aliases)) {
      const at::Tensor callers = arguments_[i].toTensor();
      const bool wrapped = callers.unsafeGetTensorImpl()->is_wrapped_number();
      arguments_[i] = callers.clone();
      host_values_.push_back({i, callers, arguments_[i].toTensor()});
      arguments_[i].toTensor().unsafeGetTensorImpl()->set_wrapped_number(wrapped);
    }
    if (written[i]) {
      append_tensors(arguments_[i], writes_);
    }
  }
}

void GraphCall::draws(int generator, CapturedSeed seed) {
  generator_ = generator;
  seed_ = seed;
}

std::optional<Stack> GraphCall::results_among(const Stack& arguments) const {
  const auto& schema = op_.schema();
  Stack results;
  for (const auto& result : schema.returns()) {
    bool found = false;
    for (size_t i = 0; i < schema.arguments().size() && !found && result.alias_info() != nullptr; ++i) {
      const auto* info = schema.arguments()[i].alias_info();
      found = info != nullptr && info->isWrite() && info->beforeSets() == result.alias_info()->beforeSets();
      if (found) {
        results.push_back(arguments[i]);
      }
    }
    if (!found) {
      return std::nullopt;
    }
  }
  return results;
}

size_t GraphCall::largest_write() const {
  size_t largest = 0;
  for (const at::Tensor& tensor : writes_) {
    largest = std::max(largest, tensor.defined() ? span_of(tensor) : 0);
  }
  return largest;
}

void GraphCall::save_writes(const GraphStream& stream) const {
  for (const at::Tensor& tensor : writes_) {
    stream.save(tensor);
  }
}

void GraphCall::expect(
    const std::vector<at::Tensor>& host, const std::vector<at::Tensor>& device, const AliasTable& aliases) {
  for (size_t i = 0; i < host.size(); ++i) {
    if (!host[i].defined() || aliases.has_storage_of(host[i])) {
      continue;
    }
    const auto& storage = device[i].storage();
    bool known = false;
    for (const Target& target : targets_) {
      known = known || target.memory == storage.data();
    }
    if (!known && storage.nbytes() != 0) {
      targets_.push_back({i, storage.mutable_data(), host[i].storage().nbytes()});
    }
  }
}

void GraphCall::commit(const GraphStream& stream, order::CapturedPtr order) && {
  for (const Target& target : targets_) {
    stream.poison(target.memory, target.bytes);
  }
  const std::string name = toString(op_.operator_name());
  stream.add(name, [call = std::make_shared<GraphCall>(std::move(*this))] { call->run(); }, std::move(order));
}

void GraphCall::run() const {
  for (const HostValue& value : host_values_) {
    const bool same = std::memcmp(value.callers.data_ptr(), value.captured.data_ptr(), value.captured.nbytes()) == 0;
    TORCH_CHECK(
        same, "argument ", op_.schema().arguments()[value.argument].name(),
        " is on the host and has changed since the call was captured or updated; a replay takes the old value");
  }
  Stack stack = arguments_;
  if (seed_ && generator_ >= 0) {
    stack[generator_] = seeded_cpu_generator(*seed_);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const BorrowedDefaultGenerator generator(generator_ < 0 ? seed_ : std::nullopt);
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  }
  const std::vector<at::Tensor> results = tensors_in(stack, 0);
  for (const Target& target : targets_) {
    const auto& storage = results[target.result].storage();
    TORCH_CHECK(
        storage.nbytes() == target.bytes, "the result has ", storage.nbytes(), " bytes and had ", target.bytes,
        " when the graph was captured");
    std::memcpy(target.memory, storage.data(), target.bytes);
  }
}

} // namespace virtual_npu
