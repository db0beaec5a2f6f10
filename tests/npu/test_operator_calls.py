# SPDX-License-Identifier: Apache-2.0
"""What the package passes to torch_npu's operators is known, fits the installed one, and is refused where it would not."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import vllm_ascend_patch
from vllm_ascend_patch.core import operator_calls
from vllm_ascend_patch.core.operator_calls import ATTENTION, CALLS, EXPERTS, INT8, MC2, Argument, unfit_calls
from vllm_ascend_patch.npu.operator_check import installed_schemas

ROOT = Path(vllm_ascend_patch.__file__).parent


def _calls() -> Iterator[tuple[str, set[str]]]:
    """Operator and keywords of every call that is written in the code."""
    for room in ("core", "npu", "seams"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                function = node.func
                if isinstance(function, ast.Attribute) and function.attr == "out":
                    function = function.value
                if isinstance(function, ast.Attribute) and function.attr.startswith("npu_"):
                    yield function.attr, {keyword.arg for keyword in node.keywords if keyword.arg is not None}


def test_every_operator_that_the_code_calls_is_in_the_table_with_its_keywords() -> None:
    written: dict[str, set[str]] = defaultdict(set)
    for operator, keywords in _calls():
        written[operator] |= keywords
    first_edition = {
        "npu_moe_distribute_dispatch",
        "npu_moe_distribute_combine",
    }  # taken where the second does not exist
    known: dict[str, set[str]] = defaultdict(set)
    for calls in CALLS.values():
        for call in calls:
            known[call.operator] |= call.keywords
    assert set(written) - first_edition == set(known)
    buffers = {"workspace", "out"}  # of the form that captures write into
    unknown = {name: written[name] - known[name] - buffers for name in known if written[name] - known[name] - buffers}
    assert not unknown


def test_the_installed_torch_npu_takes_every_call() -> None:
    oldest = Version(version("torch_npu")) < Version("2.8")
    assert unfit_calls(installed_schemas(), CALLS) == (["npu_gather_pa_kv_cache does not exist"] if oldest else [])


@pytest.mark.parametrize(
    ("use", "operator", "change", "words"),
    [
        (ATTENTION, "npu_scatter_pa_kv_cache", None, "npu_scatter_pa_kv_cache does not exist"),
        (
            EXPERTS,
            "npu_moe_init_routing_v2",
            "without quant_mode",
            "npu_moe_init_routing_v2 has no argument quant_mode",
        ),
        (INT8, "npu_quantize", "shorter", "npu_quantize takes 5 arguments, not 6"),
        (MC2, "npu_moe_distribute_dispatch_v2", "more", "npu_moe_distribute_dispatch_v2 needs elastic"),
    ],
)
def test_a_schema_that_does_not_fit_is_named_with_its_argument(
    use: str, operator: str, change: str | None, words: str
) -> None:
    schemas = installed_schemas()
    if change is None:
        schemas[operator] = []
    elif change == "shorter":
        schemas[operator] = [overload[:5] for overload in schemas[operator]]
    elif change == "more":
        schemas[operator] = [[*overload, Argument("elastic", True)] for overload in schemas[operator]]
    else:
        name = change.removeprefix("without ")
        schemas[operator] = [[a for a in overload if a.name != name] for overload in schemas[operator]]
    assert unfit_calls(schemas, [use]) == [words]
    others = CALLS.keys() - {use}
    assert not any(operator in phrase for phrase in unfit_calls(schemas, others - {operator_calls.LATENT_ATTENTION}))


def test_an_argument_more_with_a_default_fits() -> None:
    schemas = installed_schemas()
    schemas["npu_swiglu"] = [[*overload, Argument("tuning", False)] for overload in schemas["npu_swiglu"]]
    assert unfit_calls(schemas, [EXPERTS]) == []
