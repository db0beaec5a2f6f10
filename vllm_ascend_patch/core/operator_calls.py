# SPDX-License-Identifier: Apache-2.0
"""What this package passes to torch_npu's operators, as data, and whether an installed torch_npu takes it.

Post releases of torch_npu add, drop and rename arguments; what is met here before a start would else end a worker. A test
holds the table against the calls in the code. Neither torch_npu nor vLLM is imported here: schemas are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Argument(NamedTuple):
    """One argument of an operator's schema."""

    name: str
    required: bool


class Call(NamedTuple):
    """How the package calls ``operator``: so many arguments by position, the others by name.

    Attributes:
        optional: there is another way where the operator does not exist.
    """

    operator: str
    positional: int
    keywords: frozenset[str] = frozenset()
    optional: bool = False


Schemas = Mapping[str, Sequence[Sequence[Argument]]]
"""Per operator the arguments of each of its overloads; an operator that does not exist has none."""

ATTENTION = "attention"
LATENT_ATTENTION = "multi-head latent attention"
EXPERTS = "experts"
INT8 = "int8 weights"
INT4 = "int4 weights"
MC2 = "MC2"


def _call(operator: str, positional: int, keywords: str = "", optional: bool = False) -> Call:
    return Call(operator, positional, frozenset(keywords.split()), optional)


_ATTENTION_SCORE = "num_heads num_key_value_heads scale input_layout actual_seq_lengths actual_seq_lengths_kv"
_PAGES = "block_table block_size sparse_mode atten_mask"
_GROUP = "group_ep ep_world_size ep_rank_id moe_expert_num global_bs expert_scales"

CALLS: Mapping[str, tuple[Call, ...]] = {
    ATTENTION: (
        _call("npu_fused_infer_attention_score", 3, f"{_ATTENTION_SCORE} {_PAGES} pre_tokens next_tokens"),
        _call(
            "npu_fused_infer_attention_score_v2",
            3,
            "num_query_heads num_key_value_heads softmax_scale input_layout actual_seq_qlen actual_seq_kvlen learnable_sink "
            f"pre_tokens next_tokens {_PAGES}",
            optional=True,  # layers with sinks are asked for before a start
        ),
        _call("npu_scatter_pa_kv_cache", 5),
    ),
    LATENT_ATTENTION: (
        _call(
            "npu_fused_infer_attention_score", 3, f"{_ATTENTION_SCORE} {_PAGES} query_rope key_rope softmax_lse_flag"
        ),
        _call("npu_scatter_pa_kv_cache", 5),
        _call("npu_gather_pa_kv_cache", 6, "seq_offset is_seq_lens_cumsum"),
        _call("npu_attention_update", 3),
    ),
    EXPERTS: (
        _call("npu_moe_gating_top_k", 2, "bias k_group group_count group_select_mode norm_type routed_scaling_factor"),
        _call("npu_moe_gating_top_k_softmax", 3),
        _call(
            "npu_moe_init_routing_v2",
            2,
            "scale active_num expert_num drop_pad_mode expert_tokens_num_type expert_tokens_num_flag quant_mode "
            "active_expert_range row_idx_type",
        ),
        _call("npu_moe_token_unpermute", 2, "probs"),
        _call("npu_moe_finalize_routing", 8),
        _call(
            "npu_grouped_matmul",
            2,
            "bias scale per_token_scale antiquant_scale antiquant_offset group_list split_item group_type group_list_type "
            "output_dtype",
        ),
        _call("npu_swiglu", 1),
        _call("npu_clipped_swiglu", 1, "group_index alpha limit bias interleaved", optional=True),
    ),
    INT8: (
        _call("npu_dynamic_quant", 1),
        _call("npu_dequant_swiglu_quant", 1, "weight_scale activation_scale group_index activate_left quant_mode"),
        _call("npu_format_cast", 2),
        _call("npu_grouped_matmul_swiglu_quant", 5),
        _call("npu_quantize", 6),
        _call("npu_quant_matmul", 3, "bias pertoken_scale output_dtype"),
    ),
    INT4: (_call("npu_weight_quant_batchmatmul", 3, "antiquant_group_size"),),
    MC2: (
        _call(
            "npu_moe_distribute_dispatch_v2",
            0,
            f"{_GROUP} x expert_ids quant_mode expert_token_nums_type x_active_mask comm_alg",
        ),
        _call(
            "npu_moe_distribute_combine_v2",
            0,
            f"{_GROUP} expand_x expert_ids ep_send_counts expand_scales assist_info_for_combine x_active_mask comm_alg",
        ),
    ),
}
"""Every call, by what has to be served for it to be made. Not here: arguments and editions that are passed only where the
schema has them (``cache_mode``, the first edition of MC2's operators)."""


def operators() -> frozenset[str]:
    """The names of all operators in the table."""
    return frozenset(call.operator for calls in CALLS.values() for call in calls)


def unfit_calls(schemas: Schemas, uses: Iterable[str]) -> list[str]:
    """For each call of ``uses`` that no overload takes, one phrase that names operator and arguments.

    Args:
        schemas: of at least the operators of ``uses``.
        uses: keys of ``CALLS``.
    """
    calls = dict.fromkeys(call for use in uses for call in CALLS[use])
    return [phrase for call in calls if (phrase := _unfit(call, schemas.get(call.operator, ()))) is not None]


def _unfit(call: Call, overloads: Sequence[Sequence[Argument]]) -> str | None:
    if not overloads:
        return None if call.optional else f"{call.operator} does not exist"
    reasons = [list(_reasons(call, arguments)) for arguments in overloads]
    nearest = min(reasons, key=len)
    return f"{call.operator} {', '.join(nearest)}" if nearest else None


def _reasons(call: Call, arguments: Sequence[Argument]) -> Iterator[str]:
    names = [argument.name for argument in arguments]
    missing = sorted(call.keywords - set(names))
    if missing:
        yield f"has no argument {', '.join(missing)}"
    if call.positional > len(names):
        yield f"takes {len(names)} arguments, not {call.positional}"
    unmet = [a.name for a in arguments[call.positional :] if a.required and a.name not in call.keywords]
    if unmet:
        yield f"needs {', '.join(unmet)}"
