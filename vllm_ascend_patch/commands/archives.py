# SPDX-License-Identifier: Apache-2.0
"""Get the Python sources of a release: pip names the wheel, ranged requests read only its ``.py`` members, a cache
keeps them.

A vLLM wheel has more than 300 MB, its Python files less than 10. Nothing is installed or executed.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from vllm_ascend_patch.patching.source import SourceUnavailable

_PLATFORMS = ("manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 40)))
_BLOCK = 1 << 20


def cache_folder() -> Path:
    """Where the sources of releases are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vllm_ascend_patch" / "upstream"


def cached(package: str, release: str) -> Path | None:
    """The cached sources of a release, a zip file, or None."""
    path = cache_folder() / f"{package}-{release}.zip"
    return path if path.is_file() else None


class _RemoteFile(io.RawIOBase):
    """A file on a server that answers ranged requests; blocks are fetched once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._blocks: dict[int, bytes] = {}
        self._position = 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
            self._size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._position + size, self._size)
        parts = []
        while self._position < end:
            number, offset = divmod(self._position, _BLOCK)
            part = self._block(number)[offset : offset + end - self._position]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first, last = number * _BLOCK, min((number + 1) * _BLOCK, self._size) - 1
            request = urllib.request.Request(self._url, headers={"Range": f"bytes={first}-{last}"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                if answer.status != 206:
                    raise SourceUnavailable(
                        f"{self._url} does not answer ranged requests; download the file and give its path"
                    )
                self._blocks[number] = answer.read()
        return self._blocks[number]


def _wheel_url(package: str, release: str) -> str:
    """Ask pip, with the user's index settings, which wheel it would install; it downloads none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
        command += ["--use-feature", "fast-deps"]  # or pip downloads wheels whose index has no separate metadata
        command += [
            "--only-binary",
            ":all:",
            "--python-version",
            "3.12",
            "--target",
            folder,
            "--report",
            f"{folder}/report",
        ]
        for platform in _PLATFORMS:
            command += ["--platform", f"{platform}_x86_64"]
        done = subprocess.run(
            [*command, f"{package}=={release}"], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise SourceUnavailable(
                f"pip finds no wheel of {package} {release}: {last}. Give the path of a wheel, sdist or directory"
            )
        report = json.loads(Path(folder, "report").read_text(encoding="utf-8"))
    return str(report["install"][0]["download_info"]["url"])


def fetch(package: str, release: str) -> Path:
    """The sources of a release as a zip file, from the cache or from the package index. Raises
    ``SourceUnavailable``."""
    known = cached(package, release)
    if known is not None:
        return known
    url = _wheel_url(package, release)
    path = cache_folder() / f"{package}-{release}.zip"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceUnavailable(
            f"sources are kept in {path.parent}, which cannot be written ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder that can"
        ) from None
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(_RemoteFile(url)) as wheel, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as kept:
            kept.comment = url.rpartition("/")[2].encode()
            for member in sorted(wheel.infolist(), key=lambda member: member.header_offset):
                if member.filename.endswith(".py") and member.filename.startswith(f"{package}/"):
                    kept.writestr(zipfile.ZipInfo(member.filename), wheel.read(member), zipfile.ZIP_DEFLATED)
        partial.rename(path)
    except (urllib.error.URLError, zipfile.BadZipFile, KeyError) as error:
        raise SourceUnavailable(f"cannot read {url}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
