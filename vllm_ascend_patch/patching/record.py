# SPDX-License-Identifier: Apache-2.0
"""Records of upstream releases: one JSON file per release with the description of every target, made from source, kept
in a folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from .declaration import Target
from .describe import Description, Reader
from .errors import PatchError
from .source import SourceTree

FORMAT = 1


class Record:
    """What one release had at every target that was recorded."""

    def __init__(self, package: str, release: str, source: str, targets: Mapping[str, Description]) -> None:
        self.package = package
        self.release = release
        self.source = source
        self.targets = dict(targets)

    @classmethod
    def make(cls, release: str, source: str, tree: SourceTree, wanted: Mapping[str, frozenset[str]]) -> "Record":
        """Describe every target of ``wanted``, which maps a target to the calls that patches of it rely on."""
        reader = Reader(tree)
        targets = {}
        for target, calls in wanted.items():
            found = reader.describe(Target.parse(target))
            targets[target] = found._replace(calls=found.calls & calls, node=None)
        return cls(tree.package, release, source, targets)

    def dumps(self) -> str:
        """The JSON text; equal records give equal text."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "package": self.package,
            "release": self.release,
            "source": self.source,
            "targets": {
                target: self.targets[target].as_record(self.targets[target].calls) for target in sorted(self.targets)
            },
        }
        return json.dumps(data, indent=1, sort_keys=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> "Record":
        """The inverse of ``dumps``. Raises ``PatchError`` for another format."""
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise PatchError(
                f"upstream record in format {data.get('format')!r}; this version reads {FORMAT}: record it again"
            )
        targets = {target: Description.from_record(entry) for target, entry in data["targets"].items()}
        return cls(data["package"], data["release"], data["source"], targets)


class RecordStore:
    """A folder of records, ``<release>.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[str, Record] = {}

    def releases(self) -> list[str]:
        """The recorded releases, oldest first."""
        return sorted((path.stem for path in self.folder.glob("*.json")), key=Version)

    def get(self, release: str) -> Record | None:
        """The record of a release, None when there is none."""
        if release not in self._loaded:
            path = self.folder / f"{release}.json"
            if not path.is_file():
                return None
            self._loaded[release] = Record.loads(path.read_text(encoding="utf-8"))
        return self._loaded[release]

    def closest(self, release: str) -> Record | None:
        """The record of the release, of the newest one before it, or of the oldest one."""
        releases = self.releases()
        before = [known for known in releases if Version(known) <= Version(release)]
        chosen = before[-1:] or releases[:1]
        return self.get(chosen[0]) if chosen else None

    def write(self, record: Record) -> Path:
        """Store a record, replacing the one of the same release."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{record.release}.json"
        path.write_text(record.dumps(), encoding="utf-8")
        self._loaded[record.release] = record
        return path


def merge_wanted(parts: Iterable[tuple[str, Iterable[str]]]) -> dict[str, frozenset[str]]:
    """Join ``(target, calls)`` pairs into what ``Record.make`` takes."""
    wanted: dict[str, frozenset[str]] = {}
    for target, calls in parts:
        wanted[target] = wanted.get(target, frozenset()) | frozenset(calls)
    return wanted
