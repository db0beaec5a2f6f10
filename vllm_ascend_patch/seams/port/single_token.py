# SPDX-License-Identifier: Apache-2.0
"""Has a step of one token be told from tensor parallel ranks' shares of a step, in DeepSeek's model of vLLM.

The model sees by the number of rows whether a layer has left its rank's share: a share of one token is one row, too.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.seams.by_name import parameters_of


def forward(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's forward of one token ``[1]`` beside a row of padding, where ranks share steps and nothing is compiled."""
    given = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    if given["positions"].shape[0] != 1 or not _looks_at_rows(model.model):
        return original(model, *args, **kwargs)
    for name in ("input_ids", "positions", "inputs_embeds"):
        rows = given.get(name)
        if rows is not None:
            given[name] = torch.cat([rows, torch.zeros_like(rows)])
    return _first_row(original(model, **given))


def _looks_at_rows(decoder: Any) -> bool:
    """A compiled model looked at rows when it was traced, with many of them."""
    return decoder.do_not_compile and any(
        getattr(layer, "use_sequence_parallel_moe", False) for layer in decoder.layers
    )


def _first_row(states: Any) -> Any:
    """Of the hidden states, or of them and those of layers that a drafter reads."""
    if isinstance(states, tuple):
        return states[0][:1], [state[:1] for state in states[1]]
    return states[:1]
