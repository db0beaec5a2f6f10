# SPDX-License-Identifier: Apache-2.0
"""Python sources of a package, read from a directory, a wheel or a source archive. Nothing is imported, nothing is unpacked.

A tree answers two questions: the text of one module, and which modules contain a word. Everything else is built on these.
"""

import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .errors import PatchError

_VERSION = re.compile(rb"""^__version__ = (?:version = )?["']([^"']+)["']""", re.M)


class SourceUnavailable(PatchError):
    """A path holds no readable Python sources of the package."""


class SourceTree:
    """The ``.py`` files of one package, by their path relative to the package's parent (``"package/sub/module.py"``)."""

    def __init__(self, package: str, origin: str) -> None:
        self.package = package
        self.origin = origin

    def paths(self) -> Iterator[str]:
        """Every file's path."""
        raise NotImplementedError

    def read(self, path: str) -> bytes | None:
        """A file's content, None when it does not exist."""
        raise NotImplementedError

    def locate(self, module: str) -> str | None:
        """The path of a module's file (``__init__.py`` for a package)."""
        stem = module.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if self.read(path) is not None:
                return path
        return None

    def forget(self) -> None:
        """Drop what can be read again."""

    def release(self) -> str | None:
        """The version that the build wrote into ``_version.py``, without its local part; None in a plain checkout."""
        from packaging.version import InvalidVersion, Version

        found = _VERSION.search(self.read(f"{self.package}/_version.py") or b"")
        try:
            return Version(found[1].decode()).public if found else None
        except InvalidVersion:
            return None

    def containing(self, *words: str) -> Iterator[tuple[str, bytes]]:
        """Path and content of the files in which one of the words occurs."""
        needles = [word.encode() for word in words]
        for path in self.paths():
            content = self.read(path)
            if content is not None and any(needle in content for needle in needles):
                yield path, content


def module_name(path: str) -> str:
    """``"package/sub/__init__.py"`` is ``"package.sub"``."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class DirectoryTree(SourceTree):
    """An installed package, or a checkout. Keeps what it read until ``forget``; a search reads everything."""

    def __init__(self, package: str, root: Path) -> None:
        super().__init__(package, str(root))
        self._parent = root.parent
        if not (root / "__init__.py").is_file():
            raise SourceUnavailable(f"{root} is not a package: it has no __init__.py")
        self._read: dict[str, bytes | None] = {}
        self._paths: list[str] | None = None

    def paths(self) -> Iterator[str]:
        """Every file's path."""
        if self._paths is None:
            self._paths = list(self._walk())
        return iter(self._paths)

    def _walk(self) -> Iterator[str]:
        start = len(str(self._parent)) + 1
        for folder, folders, files in os.walk(self._parent / self.package):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(files):
                if name.endswith(".py"):
                    yield f"{folder}/{name}"[start:]

    def read(self, path: str) -> bytes | None:
        """A file's content, None when it does not exist."""
        if path not in self._read:
            try:
                self._read[path] = (self._parent / path).read_bytes()
            except OSError:
                self._read[path] = None
        return self._read[path]

    def forget(self) -> None:
        """Drop what was read; a large package takes tens of megabytes."""
        self._read.clear()
        self._paths = None


class _ArchiveTree(SourceTree):
    """All sources of an archive in memory; reading them one by one from a compressed stream would be quadratic."""

    def __init__(self, package: str, path: Path, files: dict[str, bytes]) -> None:
        super().__init__(package, str(path))
        self._files = files
        if f"{package}/__init__.py" not in files:
            raise SourceUnavailable(f"{path} holds no package {package!r}")

    def paths(self) -> Iterator[str]:
        """Every file's path."""
        return iter(self._files)

    def read(self, path: str) -> bytes | None:
        """A file's content, None when it does not exist."""
        return self._files.get(path)


def _open_zip(package: str, path: Path) -> SourceTree:
    with zipfile.ZipFile(path) as archive:
        wanted = [name for name in archive.namelist() if name.startswith(f"{package}/") and name.endswith(".py")]
        return _ArchiveTree(package, path, {name: archive.read(name) for name in wanted})


def _open_tar(package: str, path: Path) -> SourceTree:
    files: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            inner = member.name.partition("/")[2]  # below the folder <name>-<version>/
            if inner.startswith(f"{package}/") and inner.endswith(".py") and member.isfile():
                stream = archive.extractfile(member)
                if stream is not None:
                    files[inner] = stream.read()
    return _ArchiveTree(package, path, files)


def open_tree(package: str, path: str | os.PathLike[str]) -> SourceTree:
    """The sources of ``package`` at a path: its directory, a directory that holds it, a wheel, or a source archive.

    Raises ``SourceUnavailable``, with what was expected.
    """
    place = Path(path)
    if place.is_dir():
        return DirectoryTree(package, place if place.name == package else place / package)
    try:
        if zipfile.is_zipfile(place):
            return _open_zip(package, place)
        if place.is_file() and tarfile.is_tarfile(place):
            return _open_tar(package, place)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SourceUnavailable(f"cannot read {place}: {error}") from error
    raise SourceUnavailable(f"{place} is no directory, wheel or source archive with the sources of {package!r}")
