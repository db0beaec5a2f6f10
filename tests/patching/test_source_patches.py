# SPDX-License-Identifier: Apache-2.0
"""The diffs in ``patches/``: current, applicable with both tools to pristine sources, and enough by themselves."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.environment import ROOT, without_devices
from tests.support.processes import result_of
from vllm_ascend_patch.commands import archives
from vllm_ascend_patch.patching.source import DirectoryTree, SourceTree, open_tree
from vllm_ascend_patch.releases import declarations, guard, records

FOLDER = ROOT / "patches"
RELEASES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
RELEASE = guard.installed_release()

pytestmark = pytest.mark.slow  # makes, applies and runs the diffs of every release


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """``scripts/make_patches.py``."""
    spec = importlib.util.spec_from_file_location("make_patches", ROOT / "scripts" / "make_patches.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("VLLM_ASCEND_PATCH")
    spec.loader.exec_module(module)
    if before is None:
        os.environ.pop("VLLM_ASCEND_PATCH", None)
    return module


def sources(release: str) -> SourceTree | None:
    """The pristine sources of a release, if they are at hand without a network."""
    if release == RELEASE:
        return guard.installed_tree()
    path = archives.cached(records.PACKAGE, release)
    return open_tree(records.PACKAGE, path) if path is not None else None


def pristine(release: str, generator: ModuleType, folder: Path) -> Path:
    """The files that the diffs change, as they are in the source archive."""
    tree = sources(release)
    if tree is None:
        pytest.skip(f"the sources of {release} are neither installed nor cached")
    for module in [records.PACKAGE, *generator.target_modules(release)]:
        name = tree.locate(module)
        assert name is not None
        content = tree.read(name)
        assert content is not None
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_installed_release_has_diffs() -> None:
    assert RELEASE is None or records.STORE.get(RELEASE) is None or RELEASE in RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_a_folder_has_one_diff_per_target_module_and_lists_them_in_order(generator: ModuleType, release: str) -> None:
    names = (FOLDER / release / "series").read_text().split()
    assert sorted(path.name for path in (FOLDER / release).iterdir()) == sorted([*names, "series"])
    modules = [records.PACKAGE, *generator.target_modules(release)]
    assert [name[5:-6].replace("-", ".") for name in names] == [module.removeprefix("vllm.") for module in modules]
    for name in names[1:]:
        text = (FOLDER / release / name).read_text()
        added = [line[1:] for line in text.splitlines() if line.startswith("+") and not line.startswith("+++")]
        assert "\n".join(added).strip() == generator.HAND_OVER.strip()
        assert not [line for line in text.splitlines() if line.startswith("-") and not line.startswith("---")]


@pytest.mark.parametrize("release", RELEASES)
def test_a_folder_is_what_the_generator_makes(generator: ModuleType, release: str) -> None:
    tree = sources(release)
    if tree is None:
        pytest.skip(f"the sources of {release} are neither installed nor cached")
    assert generator.outdated(release, generator.diffs(release, tree)) == []


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("tool", ["git apply", "patch -p1"])
def test_the_diffs_apply_to_the_pristine_sources(
    generator: ModuleType, tmp_path: Path, tool: str, release: str
) -> None:
    if shutil.which(tool.split()[0]) is None:
        pytest.skip(f"{tool.split()[0]} is not installed")
    folder = pristine(release, generator, tmp_path / "vllm-source")
    for name in (FOLDER / release / "series").read_text().split():
        command = [
            *tool.split(),
            *(["--fuzz=0", "-i"] if tool.startswith("patch") else []),
            str(FOLDER / release / name),
        ]
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for module in generator.target_modules(release):
        file = DirectoryTree(records.PACKAGE, folder / records.PACKAGE).locate(module)
        assert file is not None
        assert (folder / file).read_text().endswith("vllm_ascend_patch.hand_over(__name__)\n")


PROGRAM = """
import importlib, json, os, sys
assert "VLLM_ASCEND_PATCH" not in os.environ
import vllm
for module in sys.argv[1:]:
    importlib.import_module(module)
import vllm_ascend_patch
print("RESULT " + json.dumps({
    "origin": vllm.__file__,
    "rows": {row.patch.id: [str(row.state), row.reason] for row in vllm_ascend_patch.status()},
}))
"""


@pytest.mark.timeout(400)
def test_a_vllm_patched_this_way_reports_every_patch_applied(
    generator: ModuleType, tmp_path: Path, virtual_npu: list[str]
) -> None:
    """No environment variable and no import of the package by the application."""
    if RELEASE is None or RELEASE not in RELEASES:
        pytest.skip("no vLLM with diffs is installed")
    tree: Any = guard.installed_tree()
    folder = tmp_path / "built"
    shutil.copytree(tree.origin, folder / records.PACKAGE, copy_function=os.symlink)
    for module in [records.PACKAGE, *generator.target_modules(RELEASE)]:
        path = folder / (tree.locate(module) or "")
        real = path.resolve()
        path.unlink()
        shutil.copy(real, path)
    for name in (FOLDER / RELEASE / "series").read_text().split():
        subprocess.run(["patch", "-p1", "--quiet", "-i", str(FOLDER / RELEASE / name)], cwd=folder, check=True)
    done = subprocess.run(
        [*virtual_npu, "-c", PROGRAM, *generator.target_modules(RELEASE)],
        capture_output=True,
        text=True,
        env=without_devices(PYTHONPATH=f"{folder}:{ROOT}"),
        cwd=tmp_path,
        timeout=380,
        check=False,
    )
    report = result_of(done)
    assert report["origin"].startswith(str(folder))
    wanted = {patch.id for patch in declarations.patches() if records.covers(patch, RELEASE) and patch.default}
    assert {name: row for name, row in report["rows"].items() if name in wanted and row[0] != "applied"} == {}
