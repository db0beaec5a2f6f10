# SPDX-License-Identifier: Apache-2.0
"""The environment of one torch and its torch_npu, for the releases that pin them. Runs no engine.

The other packages are those of the default line, as for every release of the matrix. An environment takes 2 to 9 GB:
there is one at a time on disk.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.environment import ROOT
from vllm_ascend_patch.releases.pinned import pinned
from vllm_ascend_patch.releases.records import Stack


def groups(releases: list[str]) -> dict[Stack, list[str]]:
    """The releases by the stack that they pin, both in the order given."""
    found: dict[Stack, list[str]] = {}
    for release in releases:
        found.setdefault(pinned(release).stack, []).append(release)
    return found


def make(stack: Stack, cache: Path) -> Path:
    """The interpreter of an environment with ``stack`` below ``cache``, made when missing; those of others are removed.

    Raises:
        RuntimeError: the set-up failed; it has said why.
    """
    folder = cache / f"stack-{stack.torch}-{stack.torch_npu}"
    for other in cache.glob("stack-*"):
        if other != folder:
            shutil.rmtree(other)
    options = ["--torch", stack.torch, "--torch-npu", stack.torch_npu, "--into", str(folder)]
    command = ["bash", "scripts/setup_env.sh", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"no environment with {stack}: see above")
    return Path(done.stdout.splitlines()[-1]) / "bin" / "python"
