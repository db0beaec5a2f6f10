# SPDX-License-Identifier: Apache-2.0
"""Expert layers that are more than SwiGLU, against transformers' own, in float32 on one device; the equivalence of the
methods is ``test_equivalence.py``'s."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch_npu  # noqa: F401
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from vllm_ascend_patch.core.moe.activations import Activation
from vllm_ascend_patch.core.moe.comm import make_method
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.router_ops import top_k_softmax
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, ParallelAxis, Topology

EXPERTS, TOKENS = 8, 40


def test_the_layer_of_gpt_oss_is_transformers_own() -> None:
    """Router with a bias, interleaved gates, clamps, biases of both products."""
    torch.manual_seed(3)
    config = GptOssConfig(hidden_size=64, intermediate_size=48, num_local_experts=EXPERTS, num_experts_per_tok=4)
    layer = GptOssMLP(config).eval().requires_grad_(False)
    for weight in layer.parameters():
        weight.copy_(torch.randn(weight.shape) * (0.4 if weight.dim() > 1 else 1.0))
    x = torch.randn(1, TOKENS, config.hidden_size) * 3
    expected = layer(x)[0][0]
    experts = layer.experts
    weights = ExpertWeights.from_loaded(
        experts.gate_up_proj.transpose(1, 2).contiguous().npu(),
        experts.down_proj.transpose(1, 2).contiguous().npu(),
        activation="swigluoai",
        w13_bias=experts.gate_up_proj_bias.npu(),
        w2_bias=experts.down_proj_bias.npu(),
    )
    logits = torch.nn.functional.linear(x[0], layer.router.weight, layer.router.bias).npu()
    topk_weights, topk_ids = top_k_softmax(logits, config.num_experts_per_tok, renormalize=True)
    alone = Topology(ParallelAxis(), ParallelAxis(), ParallelAxis())
    output = fused_moe(
        make_method("allgather", alone, ExpertPlacement.linear(EXPERTS)),
        x[0].npu(),
        topk_weights,
        topk_ids,
        weights,
        MoEStep((TOKENS,), TOKENS, "allgather"),
    )
    gate_up = torch.einsum("th,ehi->eti", x[0], experts.gate_up_proj)
    assert min(gate_up[..., half::2].amax() for half in (0, 1)) > 7, "nothing would be clamped"
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["swigluoai", "swigluoai_uninterleave", "silu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_the_operator_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    """torch_npu 2.7 does not have it."""
    activation = replace(Activation.of(name, limit=2.0), alpha=1.3)
    x = (torch.randn(9, 32, generator=torch.Generator().manual_seed(5)) * 3).to(dtype).npu()
    assert torch.equal(activation(x, torch.tensor([4, 5]).npu()), activation._clipped(x))
