# SPDX-License-Identifier: Apache-2.0
"""An environment whose vLLM is the installed release without model runner V1, as upstream will leave it some day."""

from __future__ import annotations

import ast
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

from .installed import vllm_file

REMOVED = (
    "v1/worker/gpu_model_runner.py",
    "v1/worker/gpu_input_batch.py",
    "v1/worker/gpu_ubatch_wrapper.py",
    "v1/worker/cpu_model_runner.py",
    "v1/worker/xpu_model_runner.py",
    "v1/sample/rejection_sampler.py",
)
"""Whole modules, those of other devices that are built on V1 included."""

_DRAFTING = "v1/spec_decode"
_DRAFTING_KEPT = ("__init__.py", "metrics.py", "utils.py", "fly.py")
"""V1's drafters are a folder, of which V2, the scheduler and the metrics take these modules, and a folder."""

KEPT = {
    "v1/worker/block_table.py": {"get_block_table_width"},
    "v1/worker/dp_utils.py": {"skip_dp_coordination", "should_skip_dp_coordination"},
}
"""What V2 takes from modules of V1; their other functions and classes go."""


def make(folder: Path) -> Path:
    """The interpreter of the environment, below ``folder``: links to the installed files but for vLLM's changed ones."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    links = "\n".join(f"import site; site.addsitedir({path!r})" for path in site.getsitepackages())
    (packages / "installed.pth").write_text(links + "\n")
    root = packages / "vllm"
    shutil.copytree(vllm_file(), root, copy_function=os.symlink)
    drafters = {f"{_DRAFTING}/{path.name}" for path in (root / _DRAFTING).glob("*.py")}
    names = {*REMOVED, *drafters} - {f"{_DRAFTING}/{name}" for name in _DRAFTING_KEPT}
    gone = {_module(name): None for name in names if _removed(root / name)}
    removed: dict[str, set[str] | None] = gone | {_module(name): _cut(root / name, kept) for name, kept in KEPT.items()}
    for path in root.rglob("*.py"):
        text = path.read_text()
        if any(module in text for module in removed):
            _forget(path, text, removed)
    return folder / "bin" / "python"


def _module(name: str) -> str:
    return "vllm." + name.removesuffix(".py").replace("/", ".")


def _removed(path: Path) -> bool:
    found = path.is_symlink()
    path.unlink(missing_ok=True)
    return found


def _cut(path: Path, kept: set[str]) -> set[str]:
    """Leave out functions and classes that are not kept, and constants made of them; their names."""
    tree = ast.parse(path.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - kept
    tree.body = [node for node in tree.body if getattr(node, "name", None) not in names and not _made_of(node, names)]
    _write(path, ast.unparse(tree))
    return names


def _made_of(node: ast.stmt, names: set[str]) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node.value))


def _forget(path: Path, text: str, removed: dict[str, set[str] | None]) -> None:
    """Take imports of what was removed out of a module that stays; what is left of their names are annotations."""

    class Imports(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.stmt]:
            gone = removed.get(node.module or "", set())
            names = {alias.name for alias in node.names}
            lost = names if gone is None else names & gone
            kept = [alias for alias in node.names if alias.name not in lost]
            stand_ins = [f"{alias.asname or alias.name} = object" for alias in node.names if alias.name in lost]
            left: list[ast.stmt] = [ast.ImportFrom(node.module, kept, node.level)] if kept else []
            return [*left, *ast.parse("\n".join(stand_ins)).body]

    tree = ast.parse(text)
    before = ast.dump(tree)
    tree = ast.fix_missing_locations(Imports().visit(tree))
    if ast.dump(tree) != before:
        _write(path, ast.unparse(tree))


def _write(path: Path, text: str) -> None:
    path.unlink()  # a link to the installed file
    path.write_text(text)
