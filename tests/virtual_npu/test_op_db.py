# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own operator database on a virtual NPU: every entry gives what the CPU gives, or is listed with the reason."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

pytestmark = [pytest.mark.usefixtures("npu"), pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

SAMPLES = 8  # per entry; most have fewer

CUDA_ONLY = "exists on CUDA only: no sample inputs for, or no kernel on, a CPU"
MEMORY_FORMAT = "torch_npu refuses channels-last conversions in its own code, which is left in place"
NO_DOUBLE = "torch_npu itself makes float32 of conversions to float64"
SPARSE = "virtual NPUs have strided tensors only"
UNINITIALISED = "returns memory that nobody has written"
RANDOM = "draws random numbers of its own; test_device.py has their properties"
HOST_ARGUMENT = "takes an argument on the host; the test moves all of them"
UNDERLYING_STORAGE = "reads the storage beyond the tensor, which a copy to another device does not have"
NARROW_FLOATS = "compares float8 values, for which no tolerance can be given"

#: Entry -> why it is left out.
EXCLUDED: dict[str, str] = {
    "broadcast_shapes": "takes sizes, no tensors and no device",
    "to": "torch_npu refuses casts to channels-last layouts",
    **dict.fromkeys(
        (
            "jiterator_unary",
            "jiterator_binary",
            "jiterator_4inputs_with_extra_args",
            "jiterator_binary_return_by_ref",
            "jiterator_2inputs_2outputs",
            "nn_functional_batch_norm_without_cudnn",
            "torch_ops_aten__flash_attention_forward",
            "torch_ops_aten__efficient_attention_forward",
        ),
        CUDA_ONLY,
    ),
    **dict.fromkeys(
        ("bfloat16", "bool", "byte", "char", "float", "half", "int", "long", "short", "cdouble", "cfloat", "chalf"),
        MEMORY_FORMAT,
    ),
    **dict.fromkeys(("double", "float_power"), NO_DOUBLE),
    **dict.fromkeys(("to_sparse", "sparse_sampled_addmm", "sparse_mm_reduce"), SPARSE),
    **dict.fromkeys(
        ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"), UNINITIALISED
    ),
    **dict.fromkeys(
        (
            "bernoulli",
            "exponential",
            "multinomial",
            "nn_functional_alpha_dropout",
            "nn_functional_dropout",
            "nn_functional_dropout2d",
            "nn_functional_dropout3d",
            "nn_functional_feature_alpha_dropout_with_train",
            "nn_functional_fractional_max_pool2d",
            "nn_functional_fractional_max_pool3d",
            "nn_functional_multi_head_attention_forward",
            "nn_functional_rrelu",
            "nn_functional_scaled_dot_product_attention",
            "normal",
            "normal_in_place",
            "normal_number_mean",
            "pca_lowrank",
            "rand_like",
            "randint",
            "randint_like",
            "randn",
            "randn_like",
            "uniform",
            "cauchy",
            "geometric",
            "log_normal",
            "svd_lowrank",
        ),
        RANDOM,
    ),
    "tensor_split": HOST_ARGUMENT,
    "as_strided_partial_views": UNDERLYING_STORAGE,
    "torch__scaled_mm": NARROW_FLOATS,
}


def on_npu(value: Any) -> Any:
    """The arguments of a call, moved to the NPU with the devices that they name."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.detach().to("npu")
        return torch.device("npu") if isinstance(leaf, torch.device) or leaf == "cpu" else leaf

    return pytree.tree_map(move, value)


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("op", [pytest.param(op, id=op.formatted_name) for op in op_db])
def test_the_device_agrees_with_the_cpu(op: Any) -> None:
    if op.formatted_name in EXCLUDED:
        pytest.skip(EXCLUDED[op.formatted_name])
    dtype = torch.float32 if torch.float32 in op.dtypes else min(op.dtypes, key=str)
    compared = 0
    for sample in itertools.islice(op.sample_inputs("cpu", dtype), SAMPLES):
        expected = tensors(op(sample.input, *sample.args, **sample.kwargs))
        arguments = on_npu((sample.input, sample.args, sample.kwargs))
        if not tensors(arguments) and "device" not in sample.kwargs:
            arguments[2]["device"] = "npu"
        found = tensors(op(arguments[0], *arguments[1], **arguments[2]))
        assert len(found) == len(expected)
        for got, wanted in zip(found, expected, strict=True):
            assert got.device.type == "npu"
            assert (got.dtype, got.shape, got.layout) == (wanted.dtype, wanted.shape, wanted.layout)
            torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
        compared += 1
    assert compared, "an entry without samples proves nothing"


def test_at_least_250_entries_are_not_excluded() -> None:
    names = {op.formatted_name for op in op_db}
    assert len(names - set(EXCLUDED)) >= 250
