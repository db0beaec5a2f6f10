# SPDX-License-Identifier: Apache-2.0
"""Requests with a picture among their tokens, for families that are served with some: what the engine is asked, and what
transformers' model is given for the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoints import MODEL
from .families import Family

_SIZES = ((64, 96), (32, 32), (96, 64))  # rows and columns of pixels, one after another


def request(family: Family, prompt: list[int]) -> dict[str, Any]:
    """What the engine is asked: ``prompt``, for families with pictures with one before its last third."""
    if family.picture is None:
        return {"prompt_token_ids": prompt}
    before, after = _parts(family, prompt)
    tokens = [*before, family.picture, *after]
    return {"prompt_token_ids": tokens, "multi_modal_data": {"image": _drawn(prompt)}}


def reference_inputs(family: Family, folder: Path, prompt: list[int], chosen: Sequence[int]) -> dict[str, Any]:
    """What transformers' model is given to say the tokens ``chosen`` after ``prompt`` again, all but the last of them."""
    if family.picture is None:
        return {"input_ids": torch.tensor([[*prompt, *chosen[:-1]]])}
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder / MODEL)
    seen = processor(images=[_drawn(prompt)], return_tensors="pt")
    places = int(seen["image_grid_thw"].prod()) // processor.merge_size**2
    before, after = _parts(family, prompt)
    tokens = torch.tensor([[*before, *[family.picture] * places, *after, *chosen[:-1]]])
    return {"input_ids": tokens, "mm_token_type_ids": (tokens == family.picture).int(), **seen}


def _parts(family: Family, prompt: list[int]) -> tuple[list[int], list[int]]:
    start, end = family.around_picture
    cut = 2 * len(prompt) // 3
    return [*prompt[:cut], start], [end, *prompt[cut:]]


def _drawn(prompt: list[int]) -> Any:
    """A picture of noise, another for each prompt."""
    import numpy as np
    from PIL import Image

    rows, columns = _SIZES[len(prompt) % len(_SIZES)]
    noise = np.random.default_rng(len(prompt)).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return Image.fromarray(noise)
