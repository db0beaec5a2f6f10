# SPDX-License-Identifier: Apache-2.0
"""The ``upstream`` command on archives of every kind: what it records, what it says about drift."""

import io
import json
import shutil
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import called
from vllm_ascend_patch.commands import archives
from vllm_ascend_patch.commands import upstream as command
from vllm_ascend_patch.patching.record import RecordStore
from vllm_ascend_patch.patching.source import SourceUnavailable, open_tree
from vllm_ascend_patch.releases import declarations, guard, records

from .declare import patch, tagged

ENGINE = "def step(tokens, *, mode=None):\n    return sum(tokens)\n"
FILES = {
    "vllm/__init__.py": "",
    "vllm/_version.py": '__version__ = version = "9.1.0+cpu"\n',
    "vllm/engine.py": ENGINE,
    "vllm/user.py": "from vllm.engine import step\n",
}


def directory(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def wheel(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "vllm-9.1.0-cp38-abi3-linux_x86_64.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in files.items():
            archive.writestr(name, source)
        archive.writestr("vllm/_C.abi3.so", b"\x7fELF not python")
    return path


def sdist(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "vllm-9.1.0.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, source in files.items():
            member = tarfile.TarInfo(f"vllm-9.1.0/{name}")
            member.size = len(source.encode())
            archive.addfile(member, io.BytesIO(source.encode()))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    """An empty record folder and one declared patch, in place of the real ones."""
    made = RecordStore(tmp_path / "records")
    declared = (
        patch("vllm.engine:step", tagged, id="step", reads=("tokens",), aliases=("vllm.user:step",), releases=">=9"),
    )
    monkeypatch.setattr(records, "STORE", made)
    monkeypatch.setattr(records, "WATCHED", ("vllm.engine:other",))
    monkeypatch.setattr(declarations, "patches", lambda: declared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def invoke(*arguments: object) -> Any:
    return called(command.command, *arguments)


@pytest.mark.parametrize("make", [directory, wheel, sdist])
def test_every_kind_of_source_gives_the_same_record(store: RecordStore, tmp_path: Path, make: Any) -> None:
    result = invoke("record", make(tmp_path / "source", FILES))
    assert result.exit_code == 0, result.output
    made = store.get("9.1.0")
    assert made is not None
    found = made.targets["vllm.engine:step"]
    assert (found.kind, found.parameters, found.aliases) == (
        "function",
        ("tokens", "*", "mode=None"),
        ("vllm.user:step",),
    )
    assert made.targets["vllm.engine:other"].kind == "absent"


def test_a_release_fits_its_own_record(store: RecordStore, tmp_path: Path) -> None:
    source = directory(tmp_path / "source", FILES)
    invoke("record", source)
    result = invoke("check", source)
    assert result.exit_code == 0, result.output
    assert "fits" in result.output


def test_drift_is_a_verdict_a_diff_and_an_exit_code(store: RecordStore, tmp_path: Path) -> None:
    before = wheel(tmp_path / "before", FILES)
    invoke("record", before)
    cache = archives.cache_folder() / "vllm-9.1.0.zip"
    cache.parent.mkdir(parents=True)
    shutil.copy(before, cache)
    changed = {
        **FILES,
        "vllm/_version.py": '__version__ = version = "9.2.0"\n',
        "vllm/engine.py": "def step(batch, *, mode=None):\n    # new\n    return sum(batch)\n",
    }
    result = invoke("check", directory(tmp_path / "now", changed), "--json")
    assert result.exit_code == 1, result.output
    report = json.loads(result.output)[0]
    assert (report["release"], report["compared_with"]) == ("9.2.0", "9.1.0")
    assert report["patches"][0]["verdict"] == "drifted"
    assert "parameter 'tokens' is gone" in report["patches"][0]["reason"]
    assert (
        "-def step(tokens, *, mode=None):\n-    return sum(tokens)\n+def step(batch, *, mode=None):\n" in report["diff"]
    )


def test_a_vanished_target_is_gone_and_a_missing_baseline_is_said(
    store: RecordStore, tmp_path: Path, monkeypatch: Any
) -> None:
    def unreachable(package: str, release: str) -> Path:
        raise SourceUnavailable("no index here")

    monkeypatch.setattr(archives, "fetch", unreachable)
    invoke("record", directory(tmp_path / "before", FILES))
    now = {
        **FILES,
        "vllm/_version.py": '__version__ = "9.2.0"\n',
        "vllm/engine.py": "def stepped(tokens):\n    return tokens\n",
    }
    result = invoke("check", directory(tmp_path / "now", now))
    assert result.exit_code == 1
    assert "gone" in result.output
    assert "no index here" in result.output


def test_a_watched_place_that_changed_is_listed(store: RecordStore, tmp_path: Path) -> None:
    invoke("record", directory(tmp_path / "before", FILES))
    now = {
        **FILES,
        "vllm/_version.py": '__version__ = "9.2.0"\n',
        "vllm/engine.py": ENGINE + "def other():\n    return 1\n",
    }
    result = invoke("check", directory(tmp_path / "now", now))
    assert result.exit_code == 0, result.output
    assert "vllm.engine:other" in result.output


def test_recording_all_again_changes_nothing(store: RecordStore, tmp_path: Path) -> None:
    source = wheel(tmp_path / "source", FILES)
    invoke("record", source)
    cache = archives.cache_folder() / "vllm-9.1.0.zip"
    cache.parent.mkdir(parents=True)
    shutil.copy(source, cache)
    path = store.folder / "9.1.0.json"
    before = json.loads(path.read_text())["targets"]
    assert invoke("record", "--all").exit_code == 0
    assert json.loads(path.read_text())["targets"] == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("not-a-version", "neither a version"),
        ("{tmp}/empty", "no __init__.py"),
        ("{tmp}/text.whl", "no directory, wheel or source archive"),
        ("{tmp}/checkout", "--release"),
    ],
)
def test_a_source_that_cannot_be_used_is_explained(store: RecordStore, tmp_path: Path, what: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.whl").write_text("no zip")
    directory(tmp_path / "checkout", {"vllm/__init__.py": ""})
    result = invoke("record", what.format(tmp=tmp_path))
    assert result.exit_code != 0
    assert words in result.output


def test_the_installed_release_is_compared_with_its_own_record_and_fits() -> None:
    release = guard.installed_release()
    if release is None:
        pytest.skip("vLLM is not installed")
    baseline, rows, changed = command.check(command.locate(None))
    assert baseline is not None
    assert baseline.release == release
    assert [row.patch.id for row in rows if row.verdict.refuses] == []
    assert changed == []


def test_remote_wheels_are_read_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of our own that answers ranges and counts the bytes: the large binary member is not transferred."""
    import http.server
    import threading

    path = wheel(tmp_path / "server", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vllm/big.so", bytes(8 << 20))
    content = path.read_bytes()
    sent = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.end_headers()
            self.wfile.write(content[first : last + 1])
            sent.append(last + 1 - first)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(archives, "_wheel_url", lambda *_: f"http://127.0.0.1:{server.server_port}/vllm-9.1.0.whl")
        fetched = archives.fetch("vllm", "9.1.0")
        assert archives.fetch("vllm", "9.1.0") == fetched
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
    assert open_tree("vllm", fetched).read("vllm/engine.py") == ENGINE.encode()
    assert sum(sent) < len(content) / 2


def test_the_normal_form_does_not_depend_on_how_the_source_is_written(tmp_path: Path) -> None:
    from vllm_ascend_patch.patching import Target
    from vllm_ascend_patch.patching.describe import Reader

    plain = 'def f(a):\n    x = f"{a}b" "c"\n    return (x, 1)\n'
    other = (
        'def f(a: int) -> tuple:\n    """Doc."""\n    x: str = (f"{a}"\n         "b" "c")\n\n    return x, 1  # done\n'
    )
    bodies = set()
    for number, source in enumerate((plain, other)):
        folder = directory(tmp_path / str(number), {"vllm/__init__.py": "", "vllm/m.py": textwrap.dedent(source)})
        bodies.add(Reader(open_tree("vllm", folder)).describe(Target.parse("vllm.m:f")).body)
    assert len(bodies) == 1
