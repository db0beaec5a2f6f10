# SPDX-License-Identifier: Apache-2.0
"""The remaining limits, one call each, and the proof that no check of the single-rank kernels is without a failing call."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_ascend_patch.virtual_npu.kernels import (
    activation,
    attention_math,
    expert_balance,
    finalize_routing,
    fused_infer_attention,
    fused_infer_rules,
    gating,
    grouped_matmul,
    init_routing,
    kv_cache,
    norm,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
)

from . import broken_attention, broken_dense, broken_moe, test_attention, test_dense, test_matmul, test_routing

CHECKS = (
    "require",
    "require_absent",
    "require_contiguous",
    "require_dim",
    "require_dtype",
    "require_ids",
    "require_shape",
    "require_unique",
    "unsupported",
)
MODULES = (
    activation,
    attention_math,
    expert_balance,
    finalize_routing,
    fused_infer_attention,
    fused_infer_rules,
    gating,
    grouped_matmul,
    init_routing,
    kv_cache,
    norm,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
)


def test_the_remaining_limits() -> None:
    for source in (broken_attention, broken_dense, broken_moe):
        for legal, table in source.tables():
            for changes, message in table:
                with pytest.raises(RuntimeError, match=message):
                    legal.broken(changes)


class Recorder:
    """Wraps the checks in every kernel module and keeps the lines on which one failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failed: set[tuple[str, int]] = set()
        for module in MODULES:
            for name in CHECKS:
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, self._wrap(getattr(module, name), name == "unsupported"))

    def _wrap(self, check: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            where = (frame.f_code.co_filename, frame.f_lineno)
            try:
                result = check(*args, **kwargs)
            except RuntimeError:
                self.failed.add(where)
                raise
            if always:
                self.failed.add(where)
            return result

        return call


def sites(module: ModuleType) -> Iterator[tuple[str, int, int, str]]:
    """Every call of a check in a module: file, first and last line, text."""
    file = inspect.getfile(module)
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in CHECKS:
            yield file, node.lineno, node.end_lineno or node.lineno, ast.unparse(node)


def test_every_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    test_the_remaining_limits()
    for name in test_attention.BROKEN:
        test_attention.test_limit(name)
    test_attention.test_unmodelled_features_name_themselves()
    for module in (test_attention, test_dense, test_matmul, test_routing):
        for name, function in list(vars(module).items()):
            if name.startswith("test_") and name.endswith("_limits"):
                wants = inspect.signature(function).parameters
                with pytest.MonkeyPatch.context() as patch:
                    function(*([patch] if "monkeypatch" in wants else []))
    never = [
        f"{Path(file).name}:{first}: {text[:110]}"
        for module in MODULES
        for file, first, last, text in sites(module)
        if not any(f == file and first <= line <= last for f, line in recorder.failed)
    ]
    assert not never, "no test trips\n" + "\n".join(never)
