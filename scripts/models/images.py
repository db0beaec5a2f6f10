# SPDX-License-Identifier: Apache-2.0
"""Makes torchvision importable for vLLM's classes of models that take images, also where its operators do not load.

Its wheels are built for CUDA, whose libraries are not there; text requests need none of its operators, only its Python.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def make_importable() -> None:
    """Declare the operators that torchvision cannot be imported without; nothing where it is complete, or missing."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
