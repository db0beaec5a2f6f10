# SPDX-License-Identifier: Apache-2.0
"""Script: a W8A8 linear layer on an NPU before and after its parameters are written to, as a reload does.

python -m tests.npu.int8_layer       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import torch
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

from tests.support.processes import report
from vllm_ascend_patch.npu.int8_linear import NPUInt8LinearKernel

WIDTHS, INPUTS = [6, 4, 4], 32
NAMES = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]


def errors(channelwise: bool, static: bool = False) -> list[float]:
    """The largest error after each of two writes, as a fraction of the largest output; infinite where a tensor moved."""
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=static, is_channelwise=channelwise, input_symmetric=True
    )
    kernel, layer = NPUInt8LinearKernel(config, NAMES), torch.nn.Module()
    layer.logical_widths = WIDTHS  # type: ignore[assignment]
    shape = (sum(WIDTHS), 1) if channelwise else (len(WIDTHS),)
    parameters = {"weight": torch.zeros(sum(WIDTHS), INPUTS, dtype=torch.int8), "weight_scale": torch.ones(shape)}
    if static:
        parameters["input_scale"] = torch.ones(1)
    for name in NAMES:
        value = parameters.get(name)
        parameter = None if value is None else torch.nn.Parameter(value.to("npu"), requires_grad=False)
        layer.register_parameter(name, parameter)
    kernel.process_weights_after_loading(layer)
    held = {name: parameter.data_ptr() for name, parameter in layer.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    found: list[float] = []
    for _ in range(2):
        weight = torch.randint(-127, 128, (sum(WIDTHS), INPUTS), dtype=torch.int8, generator=generator)
        scale = torch.rand(shape, generator=generator) / 100
        layer.get_parameter("weight").data.copy_(weight)
        layer.get_parameter("weight_scale").data.copy_(scale)
        x = torch.randn(3, INPUTS, generator=generator).bfloat16().float()
        if static:  # a range that some values are beyond
            input_scale = (x.abs().max() * (0.6 + 0.2 * len(found)) / 127).reshape(1)
            layer.get_parameter("input_scale").data.copy_(input_scale)
            x_exact, x = x, (x.double() / input_scale).round().clamp(-128, 127).float() * input_scale
        kernel.process_weights_after_loading(layer)
        per_row = scale if channelwise else scale.repeat_interleave(torch.tensor(WIDTHS)).unsqueeze(1)
        expected = x @ (weight.float() * per_row).t()
        given = x_exact if static else x
        output = kernel.apply_weights(layer, given.to("npu", torch.bfloat16)).float().cpu()
        found.append(float((output - expected).abs().max() / expected.abs().max()))
    moved = held != {name: parameter.data_ptr() for name, parameter in layer.named_parameters()}
    return [float("inf")] if moved else found


if __name__ == "__main__":
    report(
        {"channel": errors(True), "tensor": errors(False), "static": errors(True, True), "both": errors(False, True)}
    )
