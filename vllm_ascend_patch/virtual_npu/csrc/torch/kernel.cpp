// SPDX-License-Identifier: Apache-2.0
//
// See kernel.h.
#include "kernel.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/enum_tag.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "alias.h"
#include "allocator.h"
#include "graph_call.h"
#include "order.h"
#include "pages.h"
#include "random.h"

namespace virtual_npu {
namespace {

using c10::IValue;
using torch::jit::Stack;

// Allocation, views and bookkeeping stay torch_npu's: they work on the simulated runtime and keep its own records right.
// So do the operators whose device argument, not their tensors, decides where the result lives.
const std::unordered_set<std::string> kLeftToTorchNPU = {
    "_copy_from_and_resize",
    "_has_compatible_shallow_copy_type",
    "_lazy_clone",
    "_pin_memory",
    "_reshape_alias",
    "_to_copy",
    "as_strided",
    "empty",
    "empty_like",
    "empty_strided",
    "empty_with_format",
    "empty_with_swapped_memory",
    "is_pinned",
    "new_empty_strided",
    "record_stream",
    "resize_",
    "resize_as_",
    "set_",
    "squeeze",
    "unfold",
    "unsafe_empty_with_format",
    "unsqueeze",
    "view",
    "view_as_complex",
    "view_as_real",
};

// Operators that accept host tensors next to device tensors on an NPU too, whatever the number of dimensions: copies,
// indices, and the batch sizes of packed sequences, which live on the host.
const std::unordered_set<std::string> kTakesHostTensors = {
    "_copy_from",
    "_foreach_copy_",
    "_index_put_impl_",
    "_pack_padded_sequence",
    "_pad_packed_sequence",
    "copy_",
    "gru.data",
    "index",
    "index_put",
    "index_put_",
    "lstm.data",
    "unsafe_index",
};

// The operator whose second result, the batch sizes, stays on the host.
constexpr const char* kPackSequence = "aten::_pack_padded_sequence";

#if !(TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9)
// PyTorch before 2.9 has no public way to an operator's dispatch table. An explicit instantiation may name private members.
auto& definition(const c10::OperatorHandle& op);
template <auto Member>
struct Expose {
  friend auto& definition(const c10::OperatorHandle& op) {
    return op.*Member;
  }
};
template struct Expose<&c10::OperatorHandle::operatorDef_>;
#endif

// What the schema of an operator says about a call.
struct Plan {
  int generator = -1;
  int device = -1;
  bool writes = false;
  bool draws_from_default = false;
  bool takes_host_tensors = false;
  bool has_kernel = false;
  bool is_zero = false;
  bool packs_sequence = false;
  bool copies = false;
  size_t destination = 0; // of a copy
  bool takes_indices = false;
  bool needs_host = false;
  bool only_views = false;
  bool reads_no_memory = false;
  std::vector<bool> written;

  explicit Plan(const c10::OperatorHandle& op) {
    const auto& arguments = op.schema().arguments();
    written.reserve(arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto& argument = arguments[i];
      written.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
      writes = writes || written.back();
      c10::TypePtr type = argument.type();
      if (const auto optional = type->cast<c10::OptionalType>()) {
        type = optional->getElementType();
      }
      if (type->kind() == c10::TypeKind::GeneratorType) {
        generator = static_cast<int>(i);
      } else if (type->kind() == c10::TypeKind::DeviceObjType) {
        device = static_cast<int>(i);
      }
    }
    draws_from_default = generator < 0 && op.hasTag(at::Tag::nondeterministic_seeded);
    const std::string& name = op.operator_name().name;
    const std::string short_name = name.substr(name.rfind(':') + 1);
    takes_host_tensors = kTakesHostTensors.count(short_name) != 0 ||
        kTakesHostTensors.count(short_name + "." + op.operator_name().overload_name) != 0;
    is_zero = short_name == "zero_";
    packs_sequence = name == kPackSequence;
    copies = short_name == "copy_" || short_name == "_copy_from";
    destination = short_name == "_copy_from" ? 1 : 0;
    takes_indices = short_name.rfind("index", 0) == 0 || short_name.rfind("_index_put", 0) == 0;
    needs_host = op.hasTag(at::Tag::data_dependent_output) ||
        (op.hasTag(at::Tag::dynamic_output_shape) && !takes_indices);
    only_views = op.hasTag(at::Tag::inplace_view);
    const auto& returns = op.schema().returns();
    reads_no_memory = only_views || (!writes && !returns.empty() && std::all_of(returns.begin(), returns.end(), [](const auto& r) {
      return r.alias_info() != nullptr && !r.alias_info()->isWrite();
    }));
    has_kernel = op.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU);
  }
};

template <typename Visit>
void for_each_tensor(const IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      visit(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      if (tensor) {
        visit(*tensor);
      }
    }
  }
}

template <typename Replace>
void replace_tensors(IValue& value, const Replace& replace) {
  if (value.isTensor()) {
    value = replace(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> replaced;
    const auto tensors = value.toTensorVector();
    replaced.reserve(tensors.size());
    for (const at::Tensor& tensor : tensors) {
      replaced.push_back(replace(tensor));
    }
    value = std::move(replaced);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> replaced;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      replaced.push_back(tensor ? std::optional<at::Tensor>(replace(*tensor)) : std::nullopt);
    }
    value = std::move(replaced);
  }
}

bool on_npu(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kNPU;
}

std::string argument_of(const c10::OperatorHandle& op, size_t index) {
  return c10::str("(when checking argument ", op.schema().arguments()[index].name(), " of ", op.operator_name(), ")");
}

class Kernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    std::call_once(planned_, [&] { plan_ = std::make_unique<Plan>(op); });
    const Plan& plan = *plan_;
    TORCH_CHECK_NOT_IMPLEMENTED(
        plan.has_kernel,
        op.operator_name(),
        " cannot run on the virtual NPU: it computes with PyTorch's CPU kernels and there is none for this operator");

    const size_t count = op.schema().arguments().size();
    const size_t first = stack->size() - count;
    std::optional<c10::Device> tensors_on = check_devices(op, plan, *stack, first, count);
    c10::Device result_device = tensors_on.value_or(c10::Device(kNPU, 0));
    if (plan.device >= 0) {
      IValue& argument = (*stack)[first + plan.device];
      if (argument.isDevice()) {
        result_device = argument.toDevice();
        if (result_device.type() == kNPU) {
          if (!tensors_on) {
            static const bool initialised = initialise_device();
            (void)initialised;
          }
          argument = c10::Device(c10::DeviceType::CPU);
        }
      }
    }
    const bool results_on_npu = result_device.type() == kNPU;
    const c10::Device guarded = results_on_npu ? result_device : *tensors_on;
    const c10::OptionalDeviceGuard device_guard(guarded);
    if (results_on_npu && !result_device.has_index()) {
      result_device = c10::Device(kNPU, c10::impl::getDeviceGuardImpl(kNPU)->getDevice().index());
    }

    const GraphStream graph(guarded);
    std::optional<order::Launch> launch;
    if (order::enabled() && !plan.reads_no_memory) {
      launch.emplace(toString(op.operator_name()), guarded);
      announce(*launch, plan, *stack, first, count, guarded);
    }
    if (graph.runs() && plan.is_zero && zero_pages((*stack)[first].toTensor())) {
      if (launch) {
        launch->commit();
      }
      return;
    }
    std::optional<Stack> originals;
    if (!graph.runs() && !plan.only_views) {
      refuse_host_work(graph, op, plan, *stack, first, results_on_npu);
      originals.emplace(stack->begin() + static_cast<std::ptrdiff_t>(first), stack->end());
    }

    const bool host_waits = tensors_on && graph.runs() && waits_for_results(plan, *stack, first, results_on_npu);

    AliasTable aliases;
    for (size_t i = first; i < stack->size(); ++i) {
      replace_tensors((*stack)[i], [&](const at::Tensor& tensor) { return on_npu(tensor) ? aliases.alias(tensor) : tensor; });
    }
    std::optional<GraphCall> recorded;
    if (originals) {
      recorded.emplace(
          op, Stack(stack->begin() + static_cast<std::ptrdiff_t>(first), stack->end()), plan.written, aliases);
      if (plan.generator >= 0 || plan.draws_from_default) {
        const auto given = plan.generator < 0 ? std::nullopt : (*stack)[first + plan.generator].toOptional<at::Generator>();
        recorded->draws(plan.generator, captured_seed(given, guarded));
      }
      if (graph.updates() || recorded->largest_write() > kLargestSave) {
        if (const auto results = recorded->results_among(*originals)) {
          torch::jit::drop(*stack, count);
          stack->insert(stack->end(), results->begin(), results->end());
          std::move(*recorded).commit(graph, committed(launch));
          return;
        }
        if (graph.updates()) {
          graph.refuse(toString(op.operator_name()), "its result would be new memory; call the out= form");
        }
      }
      recorded->save_writes(graph);
    }
    if (plan.generator >= 0) {
      IValue& argument = (*stack)[first + plan.generator];
      argument = recorded ? at::detail::createCPUGenerator() : cpu_generator(argument.toOptional<at::Generator>(), guarded);
    }

    {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      const AllocateOnDevice allocate(results_on_npu);
      const BorrowedDefaultGenerator generator(plan.draws_from_default && !recorded, guarded);
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    }

    if (plan.writes) {
      aliases.write_back(guarded);
    }
    if (host_waits) {
      host_reads(*tensors_on);
    }
    const size_t first_result = stack->size() - op.schema().returns().size();
    for (size_t i = first_result; i < stack->size(); ++i) {
      for_each_tensor((*stack)[i], [&](const at::Tensor& tensor) { aliases.expect(tensor); });
    }
    const std::vector<at::Tensor> on_aliases = recorded ? tensors_in(*stack, first_result) : std::vector<at::Tensor>();
    for (size_t i = first_result; i < stack->size(); ++i) {
      const bool on_host = !results_on_npu || (plan.packs_sequence && i > first_result);
      replace_tensors((*stack)[i], [&](const at::Tensor& tensor) {
        if (on_host) {
          return tensor;
        }
        const bool fresh = launch && tensor.defined() && !aliases.has_storage_of(tensor);
        const at::Tensor result = aliases.wrap(tensor, result_device);
        if (fresh) {
          launch->write(result);
        }
        return result;
      });
    }
    order::CapturedPtr captured = committed(launch);
    if (recorded) {
      recorded->expect(on_aliases, tensors_in(*stack, first_result), aliases);
      std::move(*recorded).commit(graph, std::move(captured));
    }
  }

 private:
  // Tell the checker of order what the call touches and whether the host waits for it.
  static void announce(
      order::Launch& launch, const Plan& plan, const Stack& stack, size_t first, size_t count, c10::Device device) {
    bool host_waits = plan.needs_host;
    for (size_t i = 0; i < count; ++i) {
      const bool destination = plan.copies && plan.destination == i;
      for_each_tensor(stack[first + i], [&](const at::Tensor& tensor) {
        if (!tensor.defined()) {
          return;
        }
        if (on_npu(tensor)) {
          plan.written[i] || destination ? launch.write(tensor) : launch.read(tensor);
          if (plan.copies && tensor.device() != device) {
            launch.across(tensor.device());
          }
        } else if (plan.copies) {
          launch.copy(tensor, destination, stack[first + 2].toBool());
        }
        host_waits = host_waits || (plan.takes_indices && i != 0 && tensor.scalar_type() == at::kBool);
      });
    }
    if (host_waits) {
      launch.blocks();
    }
  }

  static order::CapturedPtr committed(std::optional<order::Launch>& launch) {
    if (!launch) {
      return nullptr;
    }
    launch->commit();
    return launch->captured();
  }

  // Whether the host has the device's results when the call returns: a value, a size, or a copy that blocks.
  static bool waits_for_results(const Plan& plan, const Stack& stack, size_t first, bool results_on_npu) {
    if (!plan.copies) {
      return !results_on_npu || plan.needs_host;
    }
    const bool to_host = !on_npu(stack[first].toTensor()) || !on_npu(stack[first + 1].toTensor());
    return to_host && !stack[first + 2].toBool();
  }

  // A captured call must not need the host: to learn sizes or values from the device, or to wait for a copy.
  static void refuse_host_work(
      const GraphStream& graph, const c10::OperatorHandle& op, const Plan& plan, const Stack& stack, size_t first,
      bool results_on_npu) {
    const std::string name = toString(op.operator_name());
    const size_t count = op.schema().arguments().size();
    const auto given = [&](const char* argument) {
      const auto index = op.schema().argumentIndexWithName(argument);
      return index && !stack[first + *index].isNone();
    };
    if (!plan.copies && (!results_on_npu || (plan.needs_host && !given("output_size")))) {
      graph.refuse(name, "the host has to wait for a value or a size that the device computes");
    }
    for (size_t i = 0; i < count; ++i) {
      for_each_tensor(stack[first + i], [&](const at::Tensor& tensor) {
        if (!tensor.defined()) {
          return;
        }
        if (plan.takes_indices && i != 0 && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte) &&
            op.schema().arguments()[i].name() == "indices") {
          graph.refuse(name, "the host has to wait for the number of elements that a mask selects");
        }
        if (tensor.device().type() == kNPU) {
          return;
        }
        if (plan.copies) {
          if (!stack[first + 2].toBool() || !tensor.is_pinned()) {
            graph.refuse(name, "a copy between host and device needs pinned host memory and non_blocking=True");
          }
        } else if (tensor.dim() != 0) {
          graph.refuse(name, c10::str("argument ", op.schema().arguments()[i].name(), " is on the host"));
        }
      });
    }
  }

  // The device of the call's tensors, if there are any on an NPU. Refuses what an NPU would refuse.
  static std::optional<c10::Device> check_devices(
      const c10::OperatorHandle& op, const Plan& plan, const Stack& stack, size_t first, size_t count) {
    std::optional<c10::Device> device;
    bool host = false;
    for (size_t i = 0; i < count; ++i) {
      for_each_tensor(stack[first + i], [&](const at::Tensor& tensor) {
        if (!tensor.defined()) {
          return;
        }
        if (tensor.device().type() != kNPU) {
          host = true;
        } else if (!device) {
          device = tensor.device();
        } else {
          TORCH_CHECK(
              *device == tensor.device() || plan.takes_host_tensors,
              "Expected all tensors to be on the same device, but found at least two devices, ",
              *device,
              " and ",
              tensor.device(),
              "! ",
              argument_of(op, i));
        }
      });
    }
    if (host && device && !plan.takes_host_tensors) {
      for (size_t i = 0; i < count; ++i) {
        for_each_tensor(stack[first + i], [&](const at::Tensor& tensor) {
          TORCH_CHECK(
              !tensor.defined() || tensor.device().type() == kNPU || (tensor.dim() == 0 && !plan.written[i]),
              "Expected all tensors to be on the same device, but found at least two devices, ",
              *device,
              " and ",
              tensor.device(),
              "! ",
              argument_of(op, i));
        });
      }
    }
    return device;
  }

  // torch_npu initialises the device when the first tensor is allocated on it.
  static bool initialise_device() {
    at::empty({0}, at::TensorOptions().device(c10::Device(kNPU)));
    return true;
  }

  std::once_flag planned_;
  std::unique_ptr<Plan> plan_;
};

// For operators whose gradient on an NPU calls operators that the CPU lacks: PyTorch's own formula.
class AutogradKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    // The formula for the CPU, called with the keys of the NPU, goes on to the NPU's kernel.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
    op.getComputedKernelForDispatchKey(c10::DispatchKey::AutogradCPU).callBoxed(op, keys, stack);
#else
    definition(op)->op.lookup(c10::DispatchKeySet(c10::DispatchKey::AutogradCPU)).callBoxed(op, keys, stack);
#endif
  }
};

// PyTorch's own definition, so that the memory is zeroed by the device's zero_.
at::Tensor zeros(
    c10::SymIntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout,
    std::optional<at::Device> device,
    std::optional<bool> pin_memory) {
  return at::empty_symint(size, dtype, layout, device, pin_memory, std::nullopt).zero_();
}

bool is_left_to_torch_npu(const c10::OperatorName& name) {
  return kLeftToTorchNPU.count(name.name.substr(name.name.rfind(':') + 1)) != 0;
}

// Whether torch_npu gave the operator an autograd kernel, or, with a kernel for what is a composition elsewhere, made
// PyTorch use the gradient that goes with such kernels (`matmul_backward` and the like).
bool has_own_autograd(const c10::OperatorHandle& op) {
  using Key = c10::DispatchKey;
  return op.hasKernelForDispatchKey(Key::AutogradPrivateUse1) ||
      (op.hasKernelForDispatchKey(Key::PrivateUse1) && op.hasKernelForDispatchKey(Key::Autograd) &&
       op.hasKernelForDispatchKey(Key::CompositeImplicitAutograd) && !op.hasKernelForDispatchKey(Key::CPU));
}

// Replacing a kernel is what this is for, so PyTorch's warning about it is not passed on.
class Quiet final : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

} // namespace

std::vector<std::string> install_kernels() {
  Quiet quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  // Never destroyed: taking kernels away while the process exits would be work for nothing.
  auto* device = new torch::Library(
      torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto* autograd = new torch::Library(
      torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse1, __FILE__, __LINE__);

  auto& dispatcher = c10::Dispatcher::singleton();
  std::vector<std::string> replaced;
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 || is_left_to_torch_npu(name)) {
      continue;
    }
    const auto op = dispatcher.findSchema(name);
    if (!op) {
      continue;
    }
    const std::string full_name = toString(name);
    if (full_name == "aten::zeros") {
      device->impl("zeros", TORCH_FN(zeros));
      replaced.push_back(full_name);
      continue;
    }
    if (op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) {
      device->impl(full_name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>()));
      replaced.push_back(full_name);
    }
    if (has_own_autograd(*op) && op->hasComputedKernelForDispatchKey(c10::DispatchKey::AutogradCPU)) {
      autograd->impl(full_name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<AutogradKernel>()));
    }
  }
  return replaced;
}

} // namespace virtual_npu
