# SPDX-License-Identifier: Apache-2.0
"""The runtime guard: compare a patch with the installed vLLM before it is applied. The comparing itself is patching's.

Works on the installed sources, so it needs no import of vLLM and can judge a target long before its module arrives.
"""

import functools
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vllm_ascend_patch.patching.compare import compare
from vllm_ascend_patch.patching.declaration import Patch
from vllm_ascend_patch.patching.describe import Reader
from vllm_ascend_patch.patching.source import DirectoryTree, SourceTree, SourceUnavailable
from vllm_ascend_patch.patching.verdict import Finding, Verdict

from . import records, runner


@functools.cache
def installed_tree() -> SourceTree | None:
    """The sources of the vLLM that this process would import, or None."""
    spec = importlib.util.find_spec(records.PACKAGE)
    if spec is None or spec.origin is None:
        return None
    try:
        return DirectoryTree(records.PACKAGE, Path(spec.origin).parent)
    except SourceUnavailable:
        return None


@functools.cache
def installed_release() -> str | None:
    """The release of the vLLM that this process would import, without its local part (``0.32.0+cpu`` is 0.32.0), or
    None."""
    from packaging.version import Version

    tree = installed_tree()
    release = tree.release() if tree is not None else None
    if release is not None:
        return release
    try:
        return Version(version(records.PACKAGE)).public
    except PackageNotFoundError:
        return None


@functools.cache
def has_runner_v1() -> bool:
    """Whether the vLLM that this process would import has model runner V1."""
    return runner.has_v1(installed_tree())


@functools.cache
def _reader() -> Reader | None:
    tree = installed_tree()
    return Reader(tree) if tree is not None else None


def forget() -> None:
    """Drop the sources that were read; verdicts stay."""
    tree = installed_tree()
    if tree is not None:
        tree.forget()
    _reader.cache_clear()


_verdicts: dict[Patch, Verdict] = {}


def examine(patch: Patch) -> Verdict:
    """The verdict on one patch for the installed vLLM. A refusal's one reason is the whole message for the user."""
    if patch not in _verdicts:
        _verdicts[patch] = _examine(patch)
    return _verdicts[patch]


def _examine(patch: Patch) -> Verdict:
    release, reader = installed_release(), _reader()
    if reader is None or release is None:
        return _refusal(patch, Verdict(Finding.UNKNOWN, release, ("no readable vLLM sources, or no version in them",)))
    if not records.covers(patch, release):
        return Verdict(Finding.NOT_NEEDED, release, (f"declared for vLLM {patch.releases}",))
    if runner.gone_with_v1(patch, reader.tree):
        return Verdict(Finding.NOT_NEEDED, release, ("this vLLM has no model runner V1",))
    record = records.STORE.get(release)
    found = reader.describe(patch.place)
    if record is not None:
        verdict = compare(patch, record.targets.get(patch.target), found, release)
    else:
        closest = records.STORE.closest(release)
        hint = "there is no record of this release"
        if closest is not None:
            near = compare(patch, closest.targets.get(patch.target), found, release)
            hint += f" (compared with {closest.release}: {near.line or near.finding})"
        verdict = Verdict(Finding.UNKNOWN, release, (hint,))
    return _refusal(patch, verdict) if verdict.refuses else verdict


def _refusal(patch: Patch, verdict: Verdict) -> Verdict:
    message = (
        f"patch {patch.id} ({patch.target}) does not fit vLLM {verdict.release or 'of unknown version'}: "
        f"{verdict.finding}: {verdict.line}. It is declared for {patch.releases or 'every release'}, recorded for "
        f"{records.span(patch)}. Install one of these, or set VLLM_ASCEND_PATCH_STRICT=warn to patch all the same, or "
        f"VLLM_ASCEND_PATCH_DISABLE={patch.id} to leave this patch out"
    )
    return Verdict(verdict.finding, verdict.release, (message,))
