# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, a compressed-tensors checkpoint whose files do not hold what it needs.

What that is, ``core/compressed_files.py`` says. ModelSlim's checkpoints are ``modelslim/recognition.py``'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_ascend_patch.core.compressed_files import METHOD, compressed_problems
from vllm_ascend_patch.core.stored_tensors import stored_tensors

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FROM_FILES = ("auto", "hf", "safetensors")
"""Load formats that read a folder's safetensors files."""


def check_compressed(vllm_config: VllmConfig) -> None:
    """``ValueError`` for the first thing that a folder's files lack, have damaged, or in another dtype or shape."""
    model = vllm_config.model_config
    folder = Path(model.model)
    if model.quantization != METHOD or str(vllm_config.load_config.load_format) not in FROM_FILES:
        return
    if not any(folder.glob("*.safetensors")):
        return  # on the hub, or in another format: nothing that can be looked at
    for problem in compressed_problems(model.hf_config.to_dict(), stored_tensors(folder)):
        raise ValueError(f"{problem}.")
