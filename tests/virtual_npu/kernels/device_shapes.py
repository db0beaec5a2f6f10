# SPDX-License-Identifier: Apache-2.0
"""Run under the launcher by test_on_device.py: every operator on the device against the wheel's own Meta kernel.

For generated inputs, outputs must have the shapes and dtypes that the operator gives for the same call on meta tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st

Call = tuple[tuple[Any, ...], dict[str, Any]]
FLOATS = [torch.float16, torch.bfloat16, torch.float32]
FRACTAL_NZ = 29


@dataclass(frozen=True)
class InFractalNZ:
    """A weight that the device wants in its private format; its shape stays what it is."""

    weight: torch.Tensor


def move(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, InFractalNZ):
        moved = value.weight.to(device)
        return torch_npu.npu_format_cast(moved, FRACTAL_NZ) if device == "npu" else moved
    if isinstance(value, list | tuple):
        return type(value)(move(item, device) for item in value)
    return value


def described(value: Any) -> Any:
    """Shapes and dtypes of a result."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    return value


def compare(name: str, call: Call) -> None:
    """Device and meta must describe the same result."""
    operator = getattr(torch.ops.npu, name)
    accepted = {argument.name for argument in operator.default._schema.arguments}
    args, kwargs = call
    kwargs = {key: value for key, value in kwargs.items() if key in accepted}
    on_device = operator(*move(args, "npu"), **{k: move(v, "npu") for k, v in kwargs.items()})
    on_meta = operator(*move(args, "meta"), **{k: move(v, "meta") for k, v in kwargs.items()})
    assert described(on_device) == described(on_meta)
    for tensor in on_device if isinstance(on_device, list | tuple) else [on_device]:
        assert tensor is None or tensor.device.type == "npu"


class Draw:
    """Short names for drawing numbers and tensors."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def int(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def of(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def float(self) -> torch.dtype:
        return self.of(*FLOATS)

    def half(self) -> torch.dtype:
        return self.of(torch.float16, torch.bfloat16)


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-9, 9, shape, dtype=torch.int8)


def rms_norm(d: Draw) -> Call:
    width, dtype = d.int(1, 9), d.float()
    return (torch.randn(d.int(0, 3), d.int(1, 3), width).to(dtype), torch.ones(width).to(dtype)), {}


def add_rms_norm(d: Draw) -> Call:
    (x, gamma), _ = rms_norm(d)
    return (x, x, gamma), {}


def swiglu(d: Draw) -> Call:
    return (torch.randn(2 * d.int(0, 3), 2 * d.int(0, 5)).to(d.float()), d.of(0, 1, -1)), {}


def clipped_swiglu(d: Draw) -> Call:
    x = torch.randn(2 * d.int(0, 3), 2 * d.int(0, 5)).to(d.float())
    dim, interleaved = d.of(0, 1, -1), d.of(True, False)
    return (x,), {"group_index": d.of(None, torch.tensor([0, 0])), "dim": dim, "interleaved": interleaved}


def rotary_mul(d: Draw) -> Call:
    x = torch.randn(d.int(1, 2), d.int(1, 3), d.int(1, 3), 2 * d.int(1, 4)).to(d.float())
    factor = x[:1, :, :1].contiguous()
    return (x, factor, factor, d.of("half", "interleave")), {}


def mrope(d: Draw) -> Call:
    tokens, dtype = d.int(0, 4), d.float()
    q, k = torch.randn(tokens, 64 * d.int(1, 3)).to(dtype), torch.randn(tokens, 64).to(dtype)
    return (torch.randint(8, (tokens,)), q, k, torch.randn(8, d.of(32, 64)).to(dtype), 64), {}


def apply_rotary_pos_emb(d: Draw) -> Call:
    layout = d.of("BSND", "TND")
    lead = (2, 3) if layout == "BSND" else (d.int(1, 4),)
    shapes = ((*lead, d.int(1, 4), 64), (*lead, d.int(1, 2), 64), (*lead, 1, 64), (*lead, 1, 64))
    dtype = d.float()
    return (*(torch.randn(shape).to(dtype) for shape in shapes), layout), {}


def gating(d: Draw) -> Call:
    count = d.of(1, 2, 4)
    x = torch.randn(d.int(0, 4), 16).to(d.float())
    return (x, d.int(1, 4)), {
        "group_count": count,
        "k_group": d.int(1, count),
        "norm_type": d.of(0, 1),
        "out_flag": d.of(True, False),
        "bias": d.of(None, torch.zeros(16).to(x.dtype)),
    }


def gating_softmax(d: Draw) -> Call:
    shape = d.of((3, 8), (2, 3, 8), (0, 8))
    finished = d.of(None, torch.zeros(shape[:-1], dtype=torch.bool))
    return (torch.randn(shape).to(d.float()), finished, d.int(1, 8)), {}


def gating_softmax_v2(d: Draw) -> Call:
    # 3-D with output_softmax is left out: the Meta kernel of 2.13 compares a method with 3 and gets that shape wrong.
    return (torch.randn(d.int(0, 4), 8).to(d.float()),), {
        "k": d.int(1, 8),
        "renorm": d.of(0, 1),
        "output_softmax": d.of(True, False),
    }


def init_routing_v2(d: Draw) -> Call:
    tokens, k, quant = d.int(1, 5), d.int(1, 4), d.of(-1, 1)
    dtype = d.of(*FLOATS, torch.int8) if quant == -1 else d.float()
    first = d.int(0, 7)
    last = d.int(first + 1, 8)
    new = "x_dtype" in str(torch.ops.npu.npu_moe_init_routing_v2.default._schema)
    scale = None if quant == -1 else d.of(None, torch.rand(last - first, 4), torch.rand(1 if new else last - first, 4))
    return (torch.ones(tokens, 4).to(dtype), torch.randint(8, (tokens, k), dtype=torch.int32)), {
        "scale": scale,
        "active_num": d.of(-1, 0, 2, 99) if new else tokens * k,
        "expert_num": 8,
        "drop_pad_mode": 0,
        "expert_tokens_num_type": d.of(0, 1, 2) if new else d.of(1, 2),
        "expert_tokens_num_flag": d.of(True, False) if new else True,
        "quant_mode": quant,
        "active_expert_range": [first, last],
        "row_idx_type": d.of(0, 1),
    }


def init_routing(d: Draw) -> Call:
    tokens, k = d.int(1, 5), d.int(1, 3)
    rows = torch.arange(tokens * k, dtype=torch.int32).view(k, tokens).t().contiguous()
    ids = torch.randint(8, (tokens, k), dtype=torch.int32)
    return (torch.randn(tokens, 4).to(d.float()), rows, ids, d.int(0, 9)), {}


def expert_tokens(d: Draw) -> Call:
    return (torch.randint(4, (d.int(0, 9),), dtype=torch.int32).sort().values, d.int(4, 9)), {}


def finalize(d: Draw) -> Call:
    tokens, k, dtype = d.int(1, 4), d.int(1, 3), d.float()
    index = torch.randperm(tokens * k).int()
    skip = d.of(None, torch.zeros(tokens, 4).to(dtype))
    rows, scales = torch.randn(tokens * k, 4).to(dtype), torch.rand(tokens, k).to(dtype)
    return (rows, skip, skip, None, scales, index, None, d.of(0, 2)), {}


def re_routing(d: Draw) -> Call:
    table = torch.randint(4, (d.int(1, 3), d.int(1, 3)), dtype=d.of(torch.int32, torch.int64))
    rows = int(table.sum())
    return (torch.ones(rows, 4).to(d.of(torch.float16, torch.bfloat16, torch.int8)), table), {
        "per_token_scales": d.of(None, torch.rand(rows))
    }


def permute(d: Draw) -> Call:
    tokens, k = d.int(1, 4), d.int(1, 3)
    ids = torch.randint(8, (tokens, k), dtype=d.of(torch.int32, torch.int64))
    return (torch.randn(tokens, 4).to(d.float()), ids, d.of(None, 0, 1, -1, 99)), {}


def unpermute(d: Draw) -> Call:
    tokens, k = d.int(1, 4), d.int(1, 3)
    index = torch.randperm(tokens * k).int()
    return (torch.randn(tokens * k, 4).to(d.float()), index, d.of(None, torch.rand(tokens, k))), {}


def update_expert(d: Draw) -> Call:
    ids = torch.randint(4, (d.int(0, 4), d.int(1, 3)), dtype=d.of(torch.int32, torch.int64))
    table = torch.tensor([[1, 0, 0], [2, 1, 2], [1, 3, 0], [2, 4, 5]], dtype=torch.int32)
    return (ids, table), {"balance_mode": d.of(0, 1), "local_rank_id": 1, "world_size": 4}


def grouped(d: Draw) -> Call:
    counts = [d.int(0, 3), d.int(0, 3)]
    rows = sum(counts) + d.int(0, 2)
    common = {"group_list": torch.tensor(counts), "group_list_type": 1, "group_type": 0, "split_item": d.of(2, 3)}
    if d.of(True, False):
        dtype = d.float()
        return ([torch.randn(rows, 8).to(dtype)], [torch.randn(2, 8, 5).to(dtype)]), common
    output = d.of(torch.int32, torch.bfloat16, torch.float16)
    scaled = {
        "scale": [torch.rand(2, 5).to(torch.bfloat16 if output == torch.bfloat16 else torch.float32)],
        "per_token_scale": [torch.rand(rows)],
    }
    return ([int8(rows, 8)], [int8(2, 8, 5)]), {
        **common,
        "output_dtype": output,
        **({} if output == torch.int32 else scaled),
    }


def grouped_int4(d: Draw) -> Call:
    rows, width = d.int(0, 3), 8 * d.int(1, 3)
    return ([int8(rows, 256)], [torch.randint(-(2**31), 2**31, (2, 256, width // 8), dtype=torch.int32)]), {
        "bias": [torch.zeros(2, width)],
        "scale": [torch.zeros(2, 1, width, dtype=torch.int64)],
        "per_token_scale": [torch.rand(rows)],
        "group_list": torch.tensor([rows, 0]),
        "group_list_type": 1,
        "group_type": 0,
        "split_item": 2,
        "output_dtype": d.half(),
    }


def grouped_weight_quant(d: Draw) -> Call:
    rows, width, dtype, groups = d.int(0, 3), 8 * d.int(2, 3), d.half(), d.of(0, 2)
    words = torch.randint(-(2**31), 2**31, (2, 64, width // 8), dtype=torch.int32)
    if d.of(True, False):
        words = torch.randint(-(2**31), 2**31, (2, width, 8), dtype=torch.int32).transpose(1, 2)
    scale = torch.rand((2, groups, width) if groups else (2, width)).to(dtype)
    return ([torch.randn(rows, 64).to(dtype)], [words]), {
        "antiquant_scale": [scale],
        "antiquant_offset": [torch.zeros_like(scale)],
        "group_list": torch.tensor([rows, 0]),
        "group_list_type": 1,
        "group_type": 0,
        "split_item": 2,
    }


def weight_quant(d: Draw) -> Call:
    width, dtype, size = 8 * d.int(2, 3), d.half(), d.of(0, 32)
    words = torch.randint(-(2**31), 2**31, (64, width // 8), dtype=torch.int32)
    if d.of(True, False):
        words = torch.randint(-(2**31), 2**31, (width, 8), dtype=torch.int32).t()
    scale = torch.rand(2 if size else 1, width).to(dtype)
    return (torch.randn(d.int(1, 3), 64).to(dtype), words, scale), {"antiquant_group_size": size}


def grouped_separate(d: Draw) -> Call:
    x = [torch.randn(d.int(1, 3), 4), torch.randn(2, d.int(1, 3), 4)]
    return (x, [torch.randn(4, d.int(1, 3)) for _ in x]), {"group_type": -1, "split_item": 0}


def grouped_swiglu(d: Draw) -> Call:
    weight = InFractalNZ(int8(2, 32, 64))
    counts = torch.tensor([d.int(0, 2), d.int(0, 2)])
    rows = int(counts.sum()) + d.int(1, 2)
    return (int8(rows, 32), weight, counts.cumsum(0), torch.rand(2, 64), torch.rand(rows)), {}


def grouped_swiglu_v2(d: Draw) -> Call:
    (x, weight, ends, scale, row_scale), _ = grouped_swiglu(d)
    return (x, [weight], [scale], row_scale, ends), {}


def dynamic_quant(d: Draw) -> Call:
    x = torch.randn(*d.of((3, 4), (2, 3, 4))).to(d.half())
    return (x,), {"smooth_scales": d.of(None, torch.ones(4).to(x.dtype))}


def quant_matmul(d: Draw) -> Call:
    output = d.of(None, torch.float16, torch.bfloat16, torch.int32)
    rows = d.int(1, 3)
    x1 = int8(*d.of((rows, 8), (2, rows, 8)))
    scale = torch.rand(d.of(1, 4)).to(torch.bfloat16 if output == torch.bfloat16 else torch.float32)
    per_token = torch.rand(rows) if output in (torch.float16, torch.bfloat16) else None
    return (x1, int8(8, 4), scale), {"output_dtype": output, "pertoken_scale": per_token}


def quantize(d: Draw) -> Call:
    dtype, width = d.float(), d.int(1, 5)
    x = torch.randn(d.int(0, 3), width).to(dtype)
    if dtype == torch.float32 and d.of(True, False):
        scale = torch.rand(d.of(1, width)) + 0.1
        return (x, scale, d.of(None, torch.zeros(scale.shape, dtype=torch.int32)), torch.qint8, -1, True), {}
    scale = torch.rand(d.of(1, width)).to(dtype)
    return (x, scale, d.of(None, scale.clone()), d.of(torch.qint8, torch.int8), d.of(-1, 1), False), {}


def swiglu_quant(d: Draw) -> Call:
    x = torch.randn(d.int(1, 4), 2 * d.int(1, 4)).to(d.float())
    return (x,), {"quant_mode": 1, "activate_left": True, "dst_type": torch.int8}


def dequant_swiglu(d: Draw) -> Call:
    counts = torch.tensor([d.int(0, 2), d.int(0, 2)])
    rows = int(counts.sum()) + d.int(0, 2)
    return (torch.randint(-99, 99, (rows, 128), dtype=torch.int32),), {
        "weight_scale": torch.rand(2, 128),
        "activation_scale": torch.rand(rows),
        "group_index": counts,
        "activate_left": True,
        "quant_mode": 1,
    }


def attention(d: Draw) -> dict[str, Any]:
    layout = d.of("TND", "BSH", "BSND", "BNSD", "BNSD_BSND")
    heads, kv_heads = d.of((8, 2), (2, 2))
    dtype, paged = d.half(), d.of(True, False)
    queries, keys, size = d.int(2, 4), 6, 128
    common = {"input_layout": layout, "num_heads": heads, "num_key_value_heads": kv_heads, "scale": 0.1}

    def arrange(tensor: torch.Tensor) -> torch.Tensor:
        if layout == "TND":
            return tensor.flatten(0, 1)
        if layout == "BSH":
            return tensor.flatten(2)
        return tensor.transpose(1, 2).contiguous() if layout.startswith("BNSD") else tensor

    query = arrange(torch.randn(2, queries, heads, size).to(dtype))
    key = arrange(torch.randn(2, keys, kv_heads, size).to(dtype))
    if layout == "TND":
        common |= {"actual_seq_lengths": [queries, 2 * queries], "actual_seq_lengths_kv": [keys, 2 * keys]}
    if paged:
        key = torch.randn(3, 128, kv_heads * size).to(dtype)
        common |= {"block_table": torch.tensor([[0], [2]], dtype=torch.int32), "block_size": 128}
        common["actual_seq_lengths_kv"] = [keys, keys]
    return {"query": query, "key": key, "value": key.clone(), "softmax_lse_flag": d.of(True, False), **common}


def latent(d: Draw) -> Call:
    heads, dtype = d.of(1, 16, 128), d.half()
    tnd = d.of(True, False)
    lead = (2, heads) if tnd else (2, 1, heads)
    cache, rope = (torch.randn(3, 128, width).to(dtype) for width in (512, 64))
    return (torch.randn(*lead, 512).to(dtype), cache, cache), {
        "query_rope": torch.randn(*lead, 64).to(dtype),
        "key_rope": rope,
        "block_table": torch.tensor([[0], [2]], dtype=torch.int32),
        "block_size": 128,
        "actual_seq_lengths": [1, 2] if tnd else None,
        "actual_seq_lengths_kv": [5, 6],
        "num_heads": heads,
        "num_key_value_heads": 1,
        "input_layout": "TND" if tnd else "BSND",
    }


def attention_update(d: Draw) -> Call:
    parts, rows, dtype = d.int(1, 3), d.int(0, 4), d.float()
    return ([torch.randn(rows) for _ in range(parts)], [torch.randn(rows, 16).to(dtype) for _ in range(parts)], 1), {}


def attention_v1(d: Draw) -> Call:
    return (), attention(d)


def attention_v2(d: Draw) -> Call:
    names = {
        "num_heads": "num_query_heads",
        "scale": "softmax_scale",
        "actual_seq_lengths": "actual_seq_qlen",
        "actual_seq_lengths_kv": "actual_seq_kvlen",
        "softmax_lse_flag": "return_softmax_lse",
    }
    return (), {names.get(name, name): value for name, value in attention(d).items()}


def scatter(d: Draw) -> Call:
    rows = torch.ones(d.int(0, 3), 2, 32)
    cache = torch.zeros(2, 16, 2, 32)
    return (rows, rows, cache, cache.clone(), torch.arange(rows.shape[0])), {"cache_mode": "Norm"}


def scatter_nd(d: Draw) -> Call:
    rows = d.int(0, 3)
    return (torch.zeros(4, 5), torch.randint(4, (rows, 1)), torch.ones(rows, 5)), {}


CALLS: dict[str, Callable[[Draw], Call]] = {
    "npu_add_rms_norm": add_rms_norm,
    "npu_apply_rotary_pos_emb": apply_rotary_pos_emb,
    "npu_attention_update": attention_update,
    "npu_clipped_swiglu": clipped_swiglu,
    "npu_dequant_swiglu_quant": dequant_swiglu,
    "npu_dynamic_quant": dynamic_quant,
    "npu_fused_infer_attention_score": attention_v1,
    "npu_fused_infer_attention_score (latent)": latent,
    "npu_fused_infer_attention_score_v2": attention_v2,
    "npu_grouped_matmul": grouped,
    "npu_grouped_matmul (int4)": grouped_int4,
    "npu_grouped_matmul (int4, float rows)": grouped_weight_quant,
    "npu_grouped_matmul (separate)": grouped_separate,
    "npu_grouped_matmul_swiglu_quant": grouped_swiglu,
    "npu_grouped_matmul_swiglu_quant_v2": grouped_swiglu_v2,
    "npu_moe_compute_expert_tokens": expert_tokens,
    "npu_moe_finalize_routing": finalize,
    "npu_moe_gating_top_k": gating,
    "npu_moe_gating_top_k_softmax": gating_softmax,
    "npu_moe_gating_top_k_softmax_v2": gating_softmax_v2,
    "npu_moe_init_routing": init_routing,
    "npu_moe_init_routing_v2": init_routing_v2,
    "npu_moe_re_routing": re_routing,
    "npu_moe_token_permute": permute,
    "npu_moe_token_unpermute": unpermute,
    "npu_moe_update_expert": update_expert,
    "npu_mrope": mrope,
    "npu_quant_matmul": quant_matmul,
    "npu_quantize": quantize,
    "npu_rms_norm": rms_norm,
    "npu_rotary_mul": rotary_mul,
    "npu_scatter_nd_update_": scatter_nd,
    "npu_scatter_pa_kv_cache": scatter,
    "npu_swiglu": swiglu,
    "npu_swiglu_quant": swiglu_quant,
    "npu_weight_quant_batchmatmul": weight_quant,
}


@pytest.mark.parametrize("name", CALLS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, print_blob=True)
def test_shapes_and_dtypes_equal_meta(name: str, data: st.DataObject) -> None:
    operator = name.partition(" ")[0]
    if not hasattr(torch.ops.npu, operator):
        pytest.skip(f"torch_npu {torch_npu.__version__} has no {operator}")
    if operator == "npu_moe_update_expert" and not 250 <= torch_npu.npu.get_soc_version() < 260:
        with pytest.raises(RuntimeError, match="exists on A3 only"):
            compare(operator, CALLS[name](Draw(data)))
        return
    compare(operator, CALLS[name](Draw(data)))


def test_every_kernel_with_a_meta_kernel_is_compared() -> None:
    from vllm_ascend_patch.virtual_npu.kernels.table import KERNELS

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    present = {schema.name for schema in torch._C._jit_get_all_schemas()}
    comparable = {
        name
        for name in KERNELS
        if name.startswith("npu::npu_") and "." not in name and name in present and has(name, "Meta")
    }
    # Dispatch and combine need a group: device_ranks.py compares them.
    compared = {f"npu::{name.partition(' ')[0]}" for name in CALLS}
    assert {name for name in comparable if "distribute" not in name} == compared & present


def test_cpu_tensors_are_refused() -> None:
    x, gamma = torch.ones(2, 4).npu(), torch.ones(4)
    with pytest.raises(RuntimeError, match=r"npu_rms_norm: Expected all tensors .* gamma is on cpu"):
        torch_npu.npu_rms_norm(x, gamma)
    with pytest.raises(RuntimeError, match=r"same device, got \['npu:0', 'npu:1'\]"):
        torch_npu.npu_rms_norm(x, gamma.to("npu:1"))


def test_results_stay_on_the_device_of_the_arguments() -> None:
    x = torch.ones(2, 4, device="npu:1")
    assert torch_npu.npu_swiglu(x).device == torch.device("npu:1")
    with torch.device("npu:0"):
        assert torch_npu.npu_moe_gating_top_k_softmax(x, None, 2)[2].device == torch.device("npu:1")


def test_in_place_operators_return_their_argument() -> None:
    target = torch.zeros(4, 5).npu()
    assert torch_npu.npu_scatter_nd_update_(target, torch.tensor([[1]]).npu(), torch.ones(1, 5).npu()) is target
    assert target.cpu()[1].tolist() == [1.0] * 5
    cache = torch.zeros(2, 16, 2, 32).half().npu()
    rows = torch.ones(1, 2, 32).half().npu()
    torch_npu._npu_reshape_and_cache(rows, rows, cache[:, :, :], cache.clone(), torch.tensor([17]).int().npu())
    assert float(cache[1, 1].sum()) == 64.0


def test_an_operator_without_a_kernel_names_itself() -> None:
    with pytest.raises(NotImplementedError, match="npu_geglu: the virtual NPU has no kernel"):
        torch_npu.npu_geglu(torch.ones(2, 4).npu())


def test_fractal_nz_is_a_format_of_the_descriptor() -> None:
    weight = int8(2, 32, 64).npu()
    cast = torch_npu.npu_format_cast(weight, 29)
    assert int(torch_npu.get_npu_format(cast)) == 29
    assert torch.equal(cast.cpu(), weight.cpu())
    assert int(torch_npu.get_npu_format(torch_npu.npu_format_cast(cast, 2))) == 2
    arguments = (torch.tensor([1, 3]).npu(), torch.ones(2, 64).npu(), torch.ones(3).npu())
    for plain in (weight, int8(2, 2, 2, 16, 32).npu()):  # the second has the dimensions of the format's tiles
        with pytest.raises(RuntimeError, match="weight must be in FRACTAL_NZ"):
            torch_npu.npu_grouped_matmul_swiglu_quant(int8(3, 32).npu(), plain, *arguments)
    assert torch_npu.npu_grouped_matmul_swiglu_quant(int8(3, 32).npu(), cast, *arguments)[0].shape == (3, 32)


def test_a_host_tensor_is_taken_where_the_device_takes_one() -> None:
    query, cache = torch.ones(1, 2, 64).half().npu(), torch.ones(1, 16, 2, 64).half().npu()
    out = torch.zeros_like(query)
    table = torch.zeros(1, 1, dtype=torch.int32).npu()
    torch_npu._npu_paged_attention(query, cache, cache, 2, 2, 0.1, table, torch.tensor([3], dtype=torch.int32), out)
    assert float(out.sum()) == 128.0
