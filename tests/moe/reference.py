# SPDX-License-Identifier: Apache-2.0
"""The oracle: a plain loop over tokens and their experts, in float64, on the full weights. No sorting, no communication.

Also the inputs of a case: every rank makes all of them from the case's seed and keeps its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .cases import Case


@dataclass
class Layer:
    """Full weights, and for each DP rank hidden states, router weights and physical ids.

    The weights are those of the physical experts and of a shared one, which is never quantised.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None
    w2_scale: torch.Tensor | None
    shared13: torch.Tensor
    shared2: torch.Tensor
    w13_bias: torch.Tensor | None
    w2_bias: torch.Tensor | None
    hidden: list[torch.Tensor]
    topk_weights: list[torch.Tensor]
    topk_ids: list[torch.Tensor]


def make_layer(case: Case) -> Layer:
    """The layer of a case, on the CPU; rows past the active ones are poisoned by ``poison_inactive``, not here."""
    dtype = getattr(torch, case.dtype)
    gated = not case.activation.endswith("_no_mul")
    kind = 7 if case.int4 else 127 if case.quantized else dtype
    weights = _weights(case.logical_experts, case.redundant, case.hidden, case.intermediate, kind, gated)
    if case.int4 and not case.quantized:
        weights = _grouped_weights(case, gated)
    shared = _weights(1, 0, case.hidden, case.intermediate, dtype)
    biases = _biases(case, gated) if case.biased else (None, None)
    layer = Layer(*weights, shared[0][0], shared[1][0], biases[0], biases[1], [], [], [])
    generator = torch.Generator().manual_seed(case.seed)
    for tokens in case.tokens_per_dp_rank:
        layer.hidden.append(torch.randn(tokens, case.hidden, generator=generator).to(dtype))
        layer.topk_weights.append(torch.rand(tokens, case.top_k, generator=generator) + 0.1)
        layer.topk_ids.append(_route(case, tokens, generator))
    return layer


def reference_output(case: Case, layer: Layer, dp_rank: int) -> torch.Tensor:
    """float64 ``[tokens, H]`` of a DP rank; zero in the rows past the active ones."""
    output = torch.zeros(case.tokens_per_dp_rank[dp_rank], case.hidden, dtype=torch.float64)
    for token in range(case.active_per_dp_rank[dp_rank]):
        x = layer.hidden[dp_rank][token].double()
        if case.shared:
            output[token] += mlp(x, layer.shared13.double(), layer.shared2.double())
        for weight, expert in zip(
            layer.topk_weights[dp_rank][token].double(), layer.topk_ids[dp_rank][token].tolist(), strict=True
        ):
            w13, w2 = _exact(layer.w13, layer.w13_scale, expert), _exact(layer.w2, layer.w2_scale, expert)
            given, kept = (weight, 1.0) if case.weight_on_input else (1.0, weight)
            inner = (given * x) @ w13.T
            if layer.w13_bias is not None:
                inner += layer.w13_bias[expert].double()
            result = activated(case, inner) @ w2.T
            if layer.w2_bias is not None:
                result += layer.w2_bias[expert].double()
            output[token] += kept * result
    return output


def activated(case: Case, x: torch.Tensor) -> torch.Tensor:
    """vLLM's activations by their names, as its CUDA kernels and its models in torch have them: ``[2I]`` or ``[I]``."""
    functional = torch.nn.functional
    name, limit = case.activation, case.limit
    if name.endswith("_no_mul"):
        if name == "relu2_no_mul":
            return functional.relu(x) ** 2
        approximate = "tanh" if "tanh" in name else "none"
        return functional.silu(x) if name == "silu_no_mul" else functional.gelu(x, approximate=approximate)
    if name == "swigluoai":  # transformers' GptOssExperts
        gate, up = x[..., ::2].clamp(max=7.0), x[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(gate * 1.702)
    gate, up = x.chunk(2, dim=-1)
    if name == "swiglustep":
        return functional.silu(gate).clamp(max=7.0) * up.clamp(-7.0, 7.0)
    if name.startswith("gelu"):
        return functional.gelu(gate, approximate="tanh" if name == "gelu_tanh" else "none") * up
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid((case.alpha or 1.0) * gate) * up


def mlp(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """One SwiGLU expert on ``[..., H]``."""
    gate, up = (x @ w13.T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ w2.T


def poison_inactive(case: Case, layer: Layer, dp_rank: int) -> None:
    """Fill the rows past the active ones with what must never travel."""
    active = case.active_per_dp_rank[dp_rank]
    layer.hidden[dp_rank][active:] = float("nan")
    layer.topk_weights[dp_rank][active:] = float("inf")
    layer.topk_ids[dp_rank][active:] = case.physical_experts + 7


@lru_cache(maxsize=8)
def random_weights(experts: int, hidden: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 ``[experts, 2 * inner, hidden]`` and ``[experts, hidden, inner]``."""
    generator = torch.Generator().manual_seed(1234)
    w13 = torch.randn(experts, 2 * inner, hidden, generator=generator) * hidden**-0.5
    w2 = torch.randn(experts, hidden, inner, generator=generator) * inner**-0.5
    return w13, w2


@lru_cache(maxsize=16)
def _weights(
    experts: int, redundant: int, hidden: int, inner: int, kind: torch.dtype | int, gated: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Random weights of a dtype, or integers up to ``kind`` with scales. Redundant experts are copies of the first ones."""
    w13, w2 = random_weights(experts, hidden, inner)
    w13 = w13 if gated else w13[:, :inner]
    logical_of = torch.cat([torch.arange(experts), torch.arange(redundant)])
    if isinstance(kind, torch.dtype):
        return w13.to(kind)[logical_of], w2.to(kind)[logical_of], None, None
    (w13, w13_scale), (w2, w2_scale) = _quantize(w13, kind), _quantize(w2, kind)
    return w13[logical_of], w2[logical_of], w13_scale[logical_of], w2_scale[logical_of]


def _grouped_weights(case: Case, gated: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers of -8 to 7 and scales ``[experts, N, G]`` of the case's dtype."""
    w13, w2, _, _ = _weights(case.logical_experts, case.redundant, case.hidden, case.intermediate, torch.float32, gated)
    made = [_quantize_groups(weight, case.group_size, getattr(torch, case.dtype)) for weight in (w13, w2)]
    return made[0][0], made[1][0], made[0][1], made[1][1]


def _quantize_groups(weight: torch.Tensor, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    groups = weight.unflatten(-1, (-1, size or weight.shape[-1]))
    scale = (groups.abs().amax(-1) / 7.5).to(dtype)
    integers = (groups / scale.float().unsqueeze(-1)).round().clamp(-8, 7)
    return integers.flatten(-2).to(torch.int8), scale


def _biases(case: Case, gated: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``[experts, 2 * inner]`` and ``[experts, hidden]``, of the weights' dtype as in a checkpoint."""
    generator = torch.Generator().manual_seed(case.seed + 77)
    columns = case.intermediate * (2 if gated else 1)
    found = [torch.randn(case.logical_experts, size, generator=generator) for size in (columns, case.hidden)]
    logical_of = torch.cat([torch.arange(case.logical_experts), torch.arange(case.redundant)])
    w13, w2 = (bias.to(getattr(torch, case.dtype))[logical_of] for bias in found)
    return w13, w2


def _exact(weight: torch.Tensor, scale: torch.Tensor | None, expert: int) -> torch.Tensor:
    exact = weight[expert].double()
    if scale is None:
        return exact
    own = scale[expert].double()
    own = own.unsqueeze(-1) if own.dim() == 1 else own.repeat_interleave(exact.shape[1] // own.shape[1], dim=1)
    return exact * own


def _quantize(weight: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(-1) / largest
    return (weight / scale.unsqueeze(-1)).round().to(torch.int8), scale


def _route(case: Case, tokens: int, generator: torch.Generator) -> torch.Tensor:
    if case.routing == "one-expert":
        return torch.full((tokens, 1), case.physical_experts // 2, dtype=torch.int32)
    if case.routing == "last-experts":
        last = torch.arange(case.physical_experts - case.top_k, case.physical_experts, dtype=torch.int32)
        return last.expand(tokens, case.top_k).clone()
    if case.routing == "one-host":
        return _route_by_host(case, tokens, generator)
    if case.routing in ("one-rank", "each-on-another"):
        return _route_by_rank(case, tokens)
    scores = torch.rand(tokens, case.logical_experts, generator=generator)
    logical = scores.topk(case.top_k, dim=1).indices
    use_copy = (torch.rand(logical.shape, generator=generator) < 0.5) & (logical < case.redundant)
    return torch.where(use_copy, logical + case.logical_experts, logical).to(torch.int32)


def _route_by_host(case: Case, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """All experts of token t on one host, t modulo the hosts."""
    local, ends = case.physical_experts // case.grid.world, [0]
    for ranks in case.grid.hosts:
        ends.append(ends[-1] + ranks * local)
    scores = torch.rand(tokens, case.physical_experts, generator=generator)
    for token in range(tokens):
        host = token % len(case.grid.hosts)
        scores[token, ends[host] : ends[host + 1]] += 1
    return scores.topk(case.top_k, dim=1).indices.to(torch.int32)


def _route_by_rank(case: Case, tokens: int) -> torch.Tensor:
    """All experts of token t on one rank, t modulo the ranks; or each on another, the first being that one."""
    ranks = case.grid.experts_over
    local = case.physical_experts // ranks
    token, copy = torch.arange(tokens).unsqueeze(1), torch.arange(case.top_k).unsqueeze(0)
    if case.routing == "one-rank":
        return (token % ranks * local + copy).to(torch.int32)
    return ((token + copy) % ranks * local + token % local).to(torch.int32)
