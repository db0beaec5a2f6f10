# SPDX-License-Identifier: Apache-2.0
"""Four bits and a scale of two's powers: every number, by hand, and transformers' own reading of gpt-oss' checkpoints."""

from __future__ import annotations

import pytest
import torch

from vllm_ascend_patch.core.mxfp4 import dequantised

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_every_number_by_hand() -> None:
    """Two rows of an expert: all sixteen numbers twice, the lower bits first; scales of 2 and of a quarter."""
    bits = torch.arange(16, dtype=torch.uint8)
    packed = (bits[0::2] | bits[1::2] << 4).repeat(2).expand(1, 2, 16)
    scales = torch.tensor([[[128], [125]]], dtype=torch.uint8)
    row = torch.tensor([*VALUES, *(-value for value in VALUES)] * 2)
    found = dequantised(packed, scales, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.stack([row * 2, row / 4]).unsqueeze(0).bfloat16())


def test_bytes_of_any_kind_are_what_transformers_makes_of_them() -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(256, (3, 8, 4, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 4), generator=generator, dtype=torch.uint8)
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)  # [E, K, N]
    assert torch.equal(dequantised(blocks.flatten(-2), scales, torch.bfloat16), expected.mT)
