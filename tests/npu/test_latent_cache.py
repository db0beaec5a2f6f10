# SPDX-License-Identifier: Apache-2.0
"""How a layer's latent cache is cut for the operators: two dense parts of its own memory, in vLLM's blocks and slots."""

from __future__ import annotations

import pytest
import torch

from vllm_ascend_patch.npu.attention.mla.layout import split_cache, split_rows


def test_both_parts_are_dense_and_together_the_whole_memory() -> None:
    cache = torch.zeros(3, 128, 576)
    latents, ropes = split_cache(cache)
    assert (latents.shape, ropes.shape) == ((3, 128, 1, 512), (3, 128, 1, 64))
    assert latents.is_contiguous()
    assert ropes.is_contiguous()
    latents.fill_(1)
    ropes.fill_(2)
    assert float(cache.sum()) == 3 * 128 * (512 + 2 * 64), "no element belongs to both, and none to neither"
    assert latents.data_ptr() == cache.data_ptr()


def test_rows_of_a_workspace_are_cut_alike() -> None:
    workspace = torch.zeros(10, 576)
    latents, ropes = split_rows(workspace, 4, (4, 1))
    latents.fill_(1)
    ropes.fill_(1)
    assert (latents.shape, ropes.shape) == ((4, 1, 512), (4, 1, 64))
    assert int(workspace.count_nonzero()) == 4 * 576


@pytest.mark.parametrize("cache", [torch.zeros(2, 128, 640), torch.zeros(2, 128, 1152)[..., :576]])
def test_a_cache_that_is_not_dense_is_refused(cache: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be dense, with 576 elements per token: got"):
        split_cache(cache)
