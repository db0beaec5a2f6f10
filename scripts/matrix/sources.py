# SPDX-License-Identifier: Apache-2.0
"""Puts the stock Python sources of one release, and the packages that it needs, into folders for ``PYTHONPATH``.

Nothing is installed: the environment keeps its own vLLM, which a folder earlier on the path hides. Downloads stay in the
cache of ``vllm_ascend_patch upstream``; unpacked sources are removed again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from vllm_ascend_patch.commands import archives


def unpack(release: str, folder: Path) -> Path:
    """``folder/<release>`` with vLLM's ``.py`` files and the metadata that tells its version; made when missing."""
    target = folder / release
    if (target / "complete").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(archives.fetch("vllm", release)) as archive:
        archive.extractall(target)
    metadata = target / f"vllm-{release}.dist-info"
    metadata.mkdir()
    # Enough for importlib.metadata; without it the environment's own vLLM would answer for its version.
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")
    (target / "complete").touch()
    return target


def overlay(pins: tuple[str, ...], folder: Path) -> Path | None:
    """A folder with ``pins``, installed once for each set of them; None for no pins."""
    if not pins:
        return None
    target = folder / f"packages-{hashlib.sha256(' '.join(pins).encode()).hexdigest()[:12]}"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*install, "--target", str(target), *pins], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError(f"cannot install {' '.join(pins)}: {done.stderr.strip()[-2000:]}")
        (target / "complete").touch()
    return target


def remove(release: str, folder: Path) -> None:
    """Delete the unpacked sources of ``release``; its download stays cached."""
    shutil.rmtree(folder / release, ignore_errors=True)
