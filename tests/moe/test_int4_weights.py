# SPDX-License-Identifier: Apache-2.0
"""int4 experts' weights: a checkpoint's bytes are the operator's words, and a rank's bias is that of its inputs."""

from __future__ import annotations

import pytest
import torch

from tests.support.modelslim_models import of_int4, quantised_to_int4
from vllm_ascend_patch.core.int8_scales import as_bits
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.int4_weights import (
    check_int4_sizes,
    empty_int4,
    int4_weights,
    pack_outputs,
    scale_bias,
    scale_bias_of_rank,
)
from vllm_ascend_patch.virtual_npu.kernels.grouped_int4 import unpacked

GENERATOR = torch.Generator().manual_seed(5)


def test_words_are_views_of_what_was_loaded() -> None:
    size, hidden = 16, 24
    loaded = [
        quantised_to_int4(torch.randn(n, k, generator=GENERATOR), "up_proj")
        for n, k in ((2 * size, hidden), (hidden, size))
    ]
    w13, w2 = (empty_int4(1, 2 * each["weight"].shape[0], each["weight"].shape[1]) for each in loaded)
    for parameter, each in zip((w13, w2), loaded, strict=True):
        parameter[0].copy_(each["weight"])
    scales = (each["weight_scale"].view(torch.int32).long().unsqueeze(0) for each in loaded)
    biases = (each["scale_bias"].unsqueeze(0) for each in loaded)
    weights = int4_weights(w13, w2, *scales, *biases, output_dtype=torch.bfloat16)
    assert (weights.hidden_size, weights.intermediate_size, weights.num_local, weights.quantized) == (
        hidden,
        size,
        1,
        True,
    )
    assert (weights.w13.data_ptr(), weights.w2.data_ptr()) == (w13.data_ptr(), w2.data_ptr())
    for words, each in zip((weights.w13, weights.w2), loaded, strict=True):
        assert words.is_contiguous()
        assert torch.equal(unpacked(words[0]).t(), of_int4(each["weight"]).long())


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_a_ranks_bias_is_eight_times_the_sum_of_its_weights(ranks: int) -> None:
    tensors = quantised_to_int4(torch.randn(6, 64, generator=GENERATOR), "down_proj")
    exact = of_int4(tensors["weight"]).double() * tensors["weight_scale"].double()
    for rank, own in enumerate(exact.chunk(ranks, dim=1)):
        found = scale_bias_of_rank("down_proj.scale_bias", tensors["scale_bias"], ranks, rank)
        torch.testing.assert_close(found.double(), 8 * own.sum(dim=1, keepdim=True), rtol=1e-5, atol=1e-5)


def test_integers_are_packed_as_modelslim_has_them_and_their_bias_is_computed() -> None:
    """For checkpoints that have a byte per integer and no bias: every integer in either half, beside every other."""
    integers = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).t().to(torch.int8).repeat_interleave(2, 0)
    integers = torch.cat([integers, torch.randint(-8, 8, integers.shape, generator=GENERATOR, dtype=torch.int8)])
    packed, scale = pack_outputs(integers), torch.rand(len(integers), 1, generator=GENERATOR)
    assert packed.dtype == torch.int8
    assert torch.equal(of_int4(packed), integers)
    exact = 8 * (integers.double() * scale.double()).sum(dim=1, keepdim=True)
    torch.testing.assert_close(scale_bias(packed, as_bits(scale)).double(), exact, rtol=1e-6, atol=1e-6)


def test_what_the_operator_does_not_take_is_refused() -> None:
    check_int4_sizes(18432, 256)
    with pytest.raises(
        MoEConfigError, match="hidden size 512 and intermediate size 384 per rank: both have to be multiples"
    ):
        check_int4_sizes(512, 384)
    with pytest.raises(
        MoEConfigError, match=r"down_proj\.scale_bias has 16 partial sums, which 3 tensor parallel ranks"
    ):
        scale_bias_of_rank("down_proj.scale_bias", torch.zeros(6, 16), 3, 0)
