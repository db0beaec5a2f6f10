# SPDX-License-Identifier: Apache-2.0
"""Which architectures of a vLLM release may have experts, read from the release's sources. Imports and runs none of them.

An architecture counts when something that its class names, directly or through other classes and functions of vLLM's
models, is vLLM's MoE layer. Classes that take any language model by its configuration (LLaVA's kind) do not.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vllm_ascend_patch.commands import archives

_MODELS = "vllm/model_executor/models/"
_OWN_FOLDERS = "vllm/models/"
_TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
_LAYERS = ("FusedMoE", "FusedMoEFactory", "SharedFusedMoE", "fused_moe", "fused_experts")
"""Names that only a model with experts uses: the layer's classes, and the functions that some call themselves."""


def architectures(release: str) -> dict[str, str]:
    """Every architecture of ``release`` that may have experts, and the module of its class."""
    return architectures_of(_archived(archives.fetch("vllm", release)))


def architectures_of(texts: Mapping[str, str]) -> dict[str, str]:
    """The same of the model code of a release, by file name below the package's parent."""
    sources = _Sources({name.removesuffix(".py").replace("/", "."): text for name, text in texts.items()})
    return {name: module for name, (module, kind) in sources.registry.items() if sources.has_experts(module, kind)}


def _archived(archive: Path) -> dict[str, str]:
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.startswith((_MODELS, _OWN_FOLDERS))]
        return {name: opened.read(name).decode() for name in names if name.endswith(".py")}


@dataclass
class _Module:
    """What a module defines and imports: the names in each definition, and where imported names come from."""

    definitions: dict[str, set[str]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class _Sources:
    """The model code of a release, by module name."""

    texts: Mapping[str, str]
    parsed: dict[str, _Module] = field(default_factory=dict)

    @cached_property
    def registry(self) -> dict[str, tuple[str, str]]:
        """Architecture -> module and class."""
        found: dict[str, tuple[str, str]] = {}
        for node in ast.parse(self.texts["vllm.model_executor.models.registry"]).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in _TABLES:
                found |= ast.literal_eval(node.value)
        here = _MODELS.replace("/", ".")
        return {name: (module if "." in module else here + module, kind) for name, (module, kind) in found.items()}

    def has_experts(self, module: str, kind: str) -> bool:
        if module.startswith(_OWN_FOLDERS.replace("/", ".")):  # a folder with a module per device: all of it counts
            parts = [text for name, text in self.texts.items() if name == module or name.startswith(f"{module}.")]
            return any(layer in text for text in parts for layer in _LAYERS)
        return any(name in _LAYERS for name in self._reached(module, kind))

    def _reached(self, module: str, name: str) -> Iterator[str]:
        """Every name that a definition leads to."""
        seen, waiting = {(module, name)}, [(module, name)]
        while waiting:
            module, name = waiting.pop()
            for used in self._module(module).definitions.get(name, ()):
                yield used
                if used in self.registry:
                    target = self.registry[used]
                elif used in self._module(module).imports:
                    target = self._module(module).imports[used]
                else:
                    target = (module, used)
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)

    def _module(self, name: str) -> _Module:
        if name not in self.parsed:
            self.parsed[name] = _read(name, self.texts.get(name, ""))
        return self.parsed[name]


def _read(name: str, text: str) -> _Module:
    found = _Module()
    package = name.rpartition(".")[0]
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], module])
            found.imports |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.definitions[node.name] = set(_names(node))
        elif isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            found.definitions |= {target: set(_names(node.value)) for target in targets}
    return found


def _names(node: ast.AST) -> Iterator[str]:
    """Names in a definition; strings too, for those that ask the registry for a class by its architecture."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
            yield part.value
