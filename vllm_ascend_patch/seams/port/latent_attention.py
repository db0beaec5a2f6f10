# SPDX-License-Identifier: Apache-2.0
"""What upstream's layer of multi-head latent attention (MLA) leaves out: zeros in padded rows, a whole memory profile."""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.seams.by_name import parameters_of


def forward_impl(original: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's attention of one layer; then rows of ``output`` past the step's real tokens are zero."""
    given = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    output, metadata = given["output"], given["attn_metadata"]
    if metadata is None:
        _allocate_like_prefill(layer, output)
    result = original(layer, *args, **kwargs)
    if metadata is not None and len(output) > metadata.num_actual_tokens:
        output[metadata.num_actual_tokens :].zero_()
    return result


def _allocate_like_prefill(layer: Any, output: torch.Tensor) -> None:
    """Take and give back the memory of the largest prefill: the step's tokens beside the largest chunk of context, or
    themselves as keys and values where they are more."""
    width = layer.qk_head_dim + layer.v_head_dim
    chunk = layer.chunked_prefill_workspace_size
    rows = max(chunk, output.shape[0])
    elements = (
        chunk * layer.head_size,  # the workspace, which the metadata builder keeps from later on
        rows * layer.num_heads * (layer.qk_nope_head_dim + layer.v_head_dim),  # projected from the latents
        rows * layer.num_heads * width,  # keys and values as the operator takes them
        3 * output.numel(),  # the result so far, the chunk's, and what they merge to
    )
    held = [output.new_empty(count) for count in elements]
    del held
