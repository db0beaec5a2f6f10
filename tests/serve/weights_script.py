# SPDX-License-Identifier: Apache-2.0
"""One worker without an engine: loads a checkpoint, then others, complete and incomplete ones. Run as a subprocess.

Reads a job as JSON from standard input: for each kind of model two checkpoints, incomplete ones to start with, what to load
again. Reports for each the error and which parameters then hold something else than a start with that checkpoint gives; and
which parameters are in FRACTAL_NZ.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_npu
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs

from tests.support.engine import engine_arguments
from tests.support.processes import report
from vllm_ascend_patch.npu.model_runner import NPUModelRunner
from vllm_ascend_patch.npu.worker import NPUWorker


class Loaded:
    """A model in the one worker of this process."""

    worker: NPUWorker | None = None

    def __init__(self, checkpoint: str, dtype: str) -> None:
        self.config = EngineArgs(**engine_arguments(checkpoint, dtype=dtype)).create_engine_config()
        with set_current_vllm_config(self.config):
            if Loaded.worker is None:
                meet = f"file://{tempfile.mkdtemp()}/meet"
                Loaded.worker = NPUWorker(self.config, 0, 0, meet, is_driver_worker=True)
                Loaded.worker.init_device()
            self.runner = NPUModelRunner(self.config, Loaded.worker.device)
            self.runner.load_model()
        self.model = self.runner.get_model()

    def held(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.model.named_parameters()}

    def in_nz(self) -> list[str]:
        formats = ((name, torch_npu.get_npu_format(parameter)) for name, parameter in self.model.named_parameters())
        return [name for name, found in formats if int(found) == 29]

    def addresses(self) -> dict[str, int]:
        return {name: parameter.data_ptr() for name, parameter in self.model.named_parameters()}

    def reload(self, folder: str) -> None:
        with set_current_vllm_config(self.config):
            self.runner.reload_weights(weights_path=folder)

    def push(self, folder: str) -> None:
        with set_current_vllm_config(self.config):
            self.model.load_weights(tensors(folder).items())

    def push_one_by_one(self, folder: str) -> None:
        with set_current_vllm_config(self.config):
            for name, tensor in tensors(folder).items():
                self.model.load_weights([(name, tensor)])


def tensors(folder: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by name."""
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def error_of(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def allocated() -> int:
    gc.collect()
    return int(torch_npu.npu.memory_allocated())


def run(first: str, second: str, start: list[str], rounds: list[tuple[str, str]], dtype: str) -> dict[str, Any]:
    refused = [error_of(lambda folder=folder: Loaded(folder, dtype)) for folder in start]  # type: ignore[misc]
    wanted = {second: Loaded(second, dtype).held()}
    model = Loaded(first, dtype)
    wanted[first] = model.held()
    addresses, bytes_before, found = model.addresses(), allocated(), []
    for how, folder in rounds:
        error = error_of(lambda how=how, folder=folder: getattr(model, how)(folder))  # type: ignore[misc]
        now = model.held()
        wrong = [name for name, value in wanted.get(folder, now).items() if not torch.equal(value, now[name])]
        moved = model.addresses() != addresses
        found.append({"error": error, "wrong": wrong, "moved": moved, "more": allocated() - bytes_before})
    differ = sum(not torch.equal(value, wanted[second][name]) for name, value in wanted[first].items())
    return {"refused": refused, "rounds": found, "differ": differ, "nz": model.in_nz()}


if __name__ == "__main__":
    report({kind: run(**arguments) for kind, arguments in json.load(sys.stdin).items()})
