# SPDX-License-Identifier: Apache-2.0
"""Gated DeltaNet in torch: values by loops over tokens in float64, states over pieces of a prompt."""

from __future__ import annotations

import math

import pytest
import torch

from vllm_ascend_patch.core.kernels import gated_delta
from vllm_ascend_patch.npu.gated_delta.metadata import pieces_of

REQUESTS, KEY_HEADS, HEADS, KEY, VALUE = 2, 2, 4, 16, 8


def drawn(tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "query": normal(REQUESTS, tokens, KEY_HEADS, KEY),
        "key": normal(REQUESTS, tokens, KEY_HEADS, KEY) + 2.0,  # alike, so that each corrects what others wrote
        "value": normal(REQUESTS, tokens, HEADS, VALUE),
        "decay": -normal(REQUESTS, tokens, HEADS).abs() * 0.1,
        "beta": normal(REQUESTS, tokens, HEADS).sigmoid(),
        "state": normal(REQUESTS, HEADS, VALUE, KEY),
    }


def by_loops(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value, decay, beta, state = (x.double() for x in inputs.values())
    state, out = state.clone(), torch.zeros(value.shape, dtype=torch.float64)
    for request in range(REQUESTS):
        for token in range(value.shape[1]):
            for head in range(HEADS):
                of_keys = head * KEY_HEADS // HEADS
                q, k = query[request, token, of_keys], key[request, token, of_keys]
                q = q / math.sqrt(float(q @ q) + 1e-6) / math.sqrt(KEY)
                k = k / math.sqrt(float(k @ k) + 1e-6)
                faded = state[request, head] * math.exp(decay[request, token, head])
                error = (value[request, token, head] - faded @ k) * beta[request, token, head]
                state[request, head] = faded + torch.outer(error, k)
                out[request, token, head] = state[request, head] @ q
    return out, state


@pytest.mark.parametrize("tokens", [1, 2, 64, 100])
def test_the_delta_rule_equals_loops_over_tokens(tokens: int) -> None:
    inputs = drawn(tokens)
    out, state = gated_delta.delta_rule(*inputs.values())
    wanted, wanted_state = by_loops(inputs)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.double(), wanted_state, rtol=1e-4, atol=1e-5)


def test_a_prompt_in_pieces_leaves_the_state_and_values_of_the_whole() -> None:
    inputs = drawn(90)
    whole, last = gated_delta.delta_rule(*inputs.values())
    state, pieces = inputs["state"], []
    for start, end in ((0, 70), (70, 89), (89, 90)):
        piece = {name: x[:, start:end] for name, x in inputs.items() if name != "state"}
        out, state = gated_delta.delta_rule(**piece, state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_a_convolution_sees_the_tokens_before_through_its_state() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 9, 3, generator=generator), torch.randn(3, 4, generator=generator)
    state = torch.randn(1, 3, 3, generator=generator)
    out, after = gated_delta.causal_convolution(x, state, weight)
    rows = torch.cat([state, x], dim=1)[0].double()
    for token in range(9):
        wanted = (rows[token : token + 4].T * weight.double()).sum(dim=1)
        torch.testing.assert_close(out[0, token].double(), wanted * wanted.sigmoid(), rtol=1e-5, atol=1e-6)
    assert torch.equal(after[0], x[0, -3:])
    first, middle = gated_delta.causal_convolution(x[:, :2], state, weight)
    second, end = gated_delta.causal_convolution(x[:, 2:], middle, weight)
    torch.testing.assert_close(torch.cat([first, second], dim=1), out)
    assert torch.equal(end, after)


def test_gates() -> None:
    a, b = torch.tensor([[0.5, 30.0]]), torch.tensor([[0.0, -1.0]])
    decay, beta = gated_delta.gates(a, b, a_log=torch.tensor([0.0, math.log(2.0)]), dt_bias=torch.tensor([0.25, 0.0]))
    assert decay[0].tolist() == pytest.approx([-math.log1p(math.exp(0.75)), -60.0])
    assert beta[0].tolist() == pytest.approx([0.5, 1 / (1 + math.e)])


def test_requests_of_one_token_are_computed_together() -> None:
    pieces = pieces_of([0, 1, 2, 2, 3, 7, 8, 9])  # of 1, 1, 0, 1, 4, 1 and 1 tokens
    found = [(p.rows.start, p.rows.stop, p.requests.start, p.requests.stop) for p in pieces]
    assert found == [(0, 2, 0, 2), (2, 3, 3, 4), (3, 7, 4, 5), (7, 9, 5, 7)]
    assert pieces_of([0]) == []
