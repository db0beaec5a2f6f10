# SPDX-License-Identifier: Apache-2.0
"""Gets a release's source archive, which has the tests that wheels lack, and unpacks a changed copy of its tests.

pip names the archive, with the user's index settings, and does not build it. Downloads stay in the cache of
``vllm_ascend_patch upstream``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from vllm_ascend_patch.commands import archives
from vllm_ascend_patch.patching.source import SourceUnavailable

from . import changes

_KEPT = ("tests/", "pyproject.toml")
"""Of the archive: its package must not hide the installed one, and pyproject.toml has pytest's options."""


def unpack(release: str, folder: Path) -> Path:
    """``folder/vllm-<release>-<digest of the changes>`` with the changed tests; made when missing.

    Raises:
        SourceUnavailable: the archive cannot be had.
        ValueError: a change has nothing to change in this release.
    """
    digest = hashlib.sha256(repr(changes.CHANGES).encode()).hexdigest()[:12]
    target = folder / f"vllm-{release}-{digest}"
    if (target / "complete").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    top = f"vllm-{release}/"
    with tarfile.open(_fetch("vllm", release)) as archive:
        for member in archive.getmembers():
            member.name = member.name.removeprefix(top)
            if member.name.startswith(_KEPT):
                archive.extract(member, target, filter="data")
    changes.apply(target)
    (target / "complete").touch()
    return target


def _fetch(package: str, release: str) -> Path:
    """The source archive, from the cache or from the package index."""
    path = archives.cache_folder() / f"{package}-{release}.tar.gz"
    if path.is_file():
        return path
    url = _url(package, release)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
        partial.rename(path)
    except (urllib.error.URLError, OSError) as error:
        raise SourceUnavailable(f"cannot read {url}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _url(package: str, release: str) -> str:
    """Ask pip which source archives its index has. Every command of pip that would report one builds it first, so this
    reads pip's own account of its search."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "pip", "index", "versions", package, "--no-binary", ":all:", "--log", str(log)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        found = re.findall(r"Found link (\S+) .*, version: (\S+)", log.read_text()) if log.is_file() else []
    for link, version in found:
        url = link.partition("#")[0]
        if version == release and url.endswith(".tar.gz"):
            return str(url)
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise SourceUnavailable(
        f"pip finds no source archive of {package} {release}: {last}. Put one at "
        f"{archives.cache_folder() / f'{package}-{release}.tar.gz'}"
    )
