# SPDX-License-Identifier: Apache-2.0
"""A vLLM release that does not exist yet is refused, and the refusal says which patch, where, and what changed.

The next release is synthetic: the installed sources with one edit, under a version that has no record.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.installed import HAS_ONE_COORDINATION, needs_vllm
from vllm_ascend_patch.patching.source import DirectoryTree, SourceTree
from vllm_ascend_patch.patching.verdict import Verdict
from vllm_ascend_patch.releases import declarations, guard, records

pytestmark = needs_vllm

RUNNER = "v1/worker/gpu_model_runner.py"
PATCHES = {patch.id: patch for patch in declarations.patches()}


@dataclass(frozen=True)
class Sync:
    """Where the installed release's data-parallel metadata sync is, and which patches are written for it."""

    patch: str
    prepare_inputs: str
    file: str
    function: str
    reads: str  # a parameter that the patch reads
    gone: str  # what is said when the function is not there


SYNC = (
    Sync(
        "dp-all-reduce",
        "dp-prepare-inputs",
        "v1/worker/dp_utils.py",
        "_run_ar",
        "parallel_config",
        "no _run_ar in vllm.v1.worker.dp_utils",
    )
    if HAS_ONE_COORDINATION
    else Sync(
        "dp-counts-all-reduce",
        "dp-counts-prepare-inputs",
        "forward_context.py",
        "num_tokens_across_dp",
        "num_tokens",
        "vllm.forward_context:DPMetadata has no num_tokens_across_dp",
    )
)


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """``next_release(patch id, {file: edit})``: the guard's verdict on that patch, were the edited vLLM installed."""
    installed = guard.installed_tree()
    release = guard.installed_release()
    assert installed is not None
    assert release is not None
    unreleased = f"{release}.90"  # closest to the installed release's own record

    def examine(patch_id: str, edits: dict[str, Callable[[str], str]]) -> Verdict:
        root = tmp_path / "vllm"
        shutil.copytree(Path(installed.origin), root, ignore=lambda folder, names: _all_but_python(folder, names))
        for name, edit in edits.items():
            file = root / name
            before = file.read_text() if file.exists() else ""
            after = edit(before)
            assert after != before, f"the edit of {name} changed nothing: the synthetic release is out of date"
            file.write_text(after)
        monkeypatch.setattr(guard, "installed_tree", lambda: _tree(root))
        monkeypatch.setattr(guard, "installed_release", lambda: unreleased)
        monkeypatch.setattr(guard, "_verdicts", {})
        guard._reader.cache_clear()
        try:
            return guard.examine(PATCHES[patch_id])
        finally:
            guard._reader.cache_clear()

    return examine


def _tree(root: Path) -> SourceTree:
    return DirectoryTree(records.PACKAGE, root)


def _all_but_python(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not name.endswith(".py") and not Path(folder, name).is_dir()}


def test_an_unknown_release_is_refused_even_when_nothing_that_matters_changed(
    next_release: Callable[..., Verdict],
) -> None:
    verdict = next_release(SYNC.patch, {SYNC.file: lambda text: text + "\n# next\n"})
    assert verdict.refuses
    assert "there is no record of this release" in verdict.line
    assert "VLLM_ASCEND_PATCH_STRICT=warn" in verdict.line


def test_a_renamed_argument_is_named(next_release: Callable[..., Verdict]) -> None:
    verdict = next_release(
        SYNC.prepare_inputs,
        {RUNNER: lambda text: _in_definition(text, "_prepare_inputs", "scheduler_output", "schedule")},
    )
    assert verdict.refuses
    assert SYNC.prepare_inputs in verdict.line
    assert "parameter 'scheduler_output' is gone" in verdict.line


def test_a_moved_function_is_missed_where_it_was(next_release: Callable[..., Verdict]) -> None:
    verdict = next_release(SYNC.patch, {SYNC.file: lambda text: text.replace(f"{SYNC.function}(", "moved_away(")})
    assert verdict.refuses
    assert SYNC.gone in verdict.line


def test_an_added_row_in_the_sync_is_noticed(next_release: Callable[..., Verdict]) -> None:
    def with_a_row(text: str) -> str:
        return _in_definition(text, SYNC.function, SYNC.reads, f"wants_something_new: bool, {SYNC.reads}")

    verdict = next_release(SYNC.patch, {SYNC.file: with_a_row})
    assert verdict.refuses
    assert f"parameter '{SYNC.reads}' moved" in verdict.line
    assert f"wants_something_new, {SYNC.reads}" in verdict.line


def _in_definition(text: str, function: str, old: str, new: str) -> str:
    """Replace the first ``old`` in the parameters of ``function``."""
    head = f"def {function}("
    start = text.index(head) + len(head)
    end = text.index(") ->", start)
    return text[:start] + text[start:end].replace(old, new, 1) + text[end:]
