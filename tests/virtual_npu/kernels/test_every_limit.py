# SPDX-License-Identifier: Apache-2.0
"""The remaining limits, one call each, and the proof that no check of the single-rank kernels is without a failing call."""

from __future__ import annotations

import inspect

import pytest

from vllm_ascend_patch.virtual_npu.kernels import (
    activation,
    attention_math,
    expert_balance,
    finalize_routing,
    fused_infer_attention,
    fused_infer_latent_rules,
    fused_infer_rules,
    gating,
    grouped_int4,
    grouped_matmul,
    grouped_rows,
    init_routing,
    kv_cache,
    latent_context,
    norm,
    packed_int4,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
    weight_quant,
)

from . import (
    broken_attention,
    broken_dense,
    broken_latent,
    broken_moe,
    test_attention,
    test_dense,
    test_latent,
    test_matmul,
    test_routing,
)
from .audit import Recorder, never_tripped

MODULES = (
    activation,
    attention_math,
    expert_balance,
    finalize_routing,
    fused_infer_attention,
    fused_infer_latent_rules,
    fused_infer_rules,
    gating,
    grouped_int4,
    grouped_matmul,
    grouped_rows,
    init_routing,
    kv_cache,
    latent_context,
    norm,
    packed_int4,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
    weight_quant,
)


def test_the_remaining_limits() -> None:
    for source in (broken_attention, broken_dense, broken_latent, broken_moe):
        for legal, table in source.tables():
            for changes, message in table:
                with pytest.raises(RuntimeError, match=message):
                    legal.broken(changes)


def test_every_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(MODULES, monkeypatch.setattr)
    test_the_remaining_limits()
    for name in test_attention.BROKEN:
        test_attention.test_limit(name)
    test_attention.test_unmodelled_features_name_themselves()
    test_latent.test_what_is_not_modelled_names_itself()
    for module in (test_attention, test_dense, test_matmul, test_routing):
        for name, function in list(vars(module).items()):
            if name.startswith("test_") and name.endswith("_limits"):
                wants = inspect.signature(function).parameters
                with pytest.MonkeyPatch.context() as patch:
                    function(*([patch] if "monkeypatch" in wants else []))
    never = never_tripped(MODULES, recorder.failed)
    assert not never, "no test trips\n" + "\n".join(never)
