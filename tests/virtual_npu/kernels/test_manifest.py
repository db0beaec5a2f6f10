# SPDX-License-Identifier: Apache-2.0
"""The manifest says exactly what is registered, and renders."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vllm_ascend_patch.virtual_npu import manifest
from vllm_ascend_patch.virtual_npu.kernels.table import ATB_SCHEMAS, DEVICE_KERNELS, KERNELS


def test_manifest_and_kernels_agree() -> None:
    assert manifest.names() == KERNELS.keys() | DEVICE_KERNELS.keys()
    listed = Counter(name for row in manifest.ROWS for name in row.names)
    assert max(listed.values()) == 1
    assert {f"atb::{name}" for name in ATB_SCHEMAS} == {name for name in KERNELS if name.startswith("atb::")}


def test_every_row_is_filled_and_rendered() -> None:
    table = manifest.markdown()
    for row in manifest.ROWS:
        assert all(text.strip() for text in (row.covers, row.not_modelled, row.limits, row.source))
        assert all(f"`{name}`" in table for name in row.names)
    body = [line for line in table.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in body} == {6}
    assert manifest.HONESTY in table


def test_the_manifest_needs_no_torch() -> None:
    code = "import sys; import vllm_ascend_patch.virtual_npu.manifest as m; m.markdown(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def operators_called(source: Path) -> Iterator[str]:
    """Names of operators that ``source`` takes from ``torch_npu`` or ``torch.ops.npu``."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "torch_npu":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("torch_npu", "torch.ops.npu"):
            names = [node.attr]
        else:
            continue
        yield from (name for name in names if name.removeprefix("_").startswith("npu_"))


def test_every_operator_that_serving_calls_is_in_the_manifest() -> None:
    package = Path(manifest.__file__).parents[1]
    sources = [path for path in package.rglob("*.py") if "virtual_npu" not in path.parts]
    called = {name: path.name for path in sources for name in operators_called(path)}
    listed = {name.removeprefix("npu::").split(".")[0] for name in manifest.names()}
    assert {"npu_grouped_matmul", "npu_fused_infer_attention_score"} <= called.keys()
    assert not {name: file for name, file in called.items() if name not in listed}
