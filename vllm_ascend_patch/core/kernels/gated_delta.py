# SPDX-License-Identifier: Apache-2.0
"""Gated DeltaNet (Qwen3-Next, Qwen3.5) in torch, in place of upstream's Triton kernels: convolution, gates, delta rule.

Everything between is float32. Symbols: ``R`` requests, ``T`` tokens of each, ``C`` channels, ``W`` taps of the convolution,
``H`` value heads, ``K`` and ``V`` elements of a key and of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_CHUNK = 64  # tokens that are computed at once; the work within a chunk grows with its square


def causal_convolution(x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SiLU of a convolution over the last ``W`` tokens of each channel.

    Args:
        x: ``[R, T, C]``.
        state: ``[R, W - 1, C]``, the tokens before.
        weight: ``[C, W]``, the last tap for the token itself.

    Returns:
        ``[R, T, C]`` in the dtype of ``x``, and the state after, ``[R, W - 1, C]``.
    """
    tokens, taps = x.shape[1], weight.shape[1]
    rows = torch.cat([state.to(x.dtype), x], dim=1)
    out = sum(rows[:, tap : tap + tokens].float() * weight[:, tap].float() for tap in range(taps))
    return F.silu(torch.as_tensor(out)).to(x.dtype), rows[:, tokens:]


def gates(
    a: torch.Tensor, b: torch.Tensor, a_log: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of how much of the state each token leaves, and how much it writes: float32 in the shape of ``a``."""
    return -a_log.float().exp() * F.softplus(a.float() + dt_bias.float()), b.float().sigmoid()


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token reads from a state that it first fades by ``exp(decay)`` and then corrects: after it, ``key`` gives
    ``value``, as far as ``beta`` says.

    Args:
        query, key: ``[R, T, heads, K]``, of as many heads as divide ``H``; normalised here.
        value: ``[R, T, H, V]``.
        decay, beta: ``[R, T, H]``.
        state: ``[R, H, V, K]``.

    Returns:
        ``[R, T, H, V]`` in the dtype of ``value``, and the state after, float32.
    """
    dtype, heads = value.dtype, value.shape[2]
    query, key = (_normalised(x).repeat_interleave(heads // x.shape[2], dim=2) for x in (query, key))
    query = query * query.shape[-1] ** -0.5
    rule = _step if value.shape[1] == 1 else _chunks
    out, state = rule(query, key, value.float(), decay.float(), beta.float(), state.float())
    return out.to(dtype), state


def _normalised(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def _step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each request."""
    query, key, value = query[:, 0], key[:, 0], value[:, 0]
    state = state * decay[:, 0].exp()[..., None, None]
    error = (value - (state @ key.unsqueeze(-1)).squeeze(-1)) * beta[:, 0].unsqueeze(-1)
    state = state + error.unsqueeze(-1) * key.unsqueeze(-2)
    return (state @ query.unsqueeze(-1)).squeeze(-1).unsqueeze(1), state


def _chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Many tokens: those of a chunk at once, by the triangular system that their corrections solve.

    Row ``i`` of a chunk corrects what the rows before it left: with ``a[i, j] = beta_i (k_i . k_j) exp(g_i - g_j)`` below
    the diagonal, the corrections are ``(1 + a)^-1`` times ``beta (v - exp(g) k S)``.
    """
    tokens = value.shape[1]
    count = -(-tokens // _CHUNK)

    def split(x: torch.Tensor) -> torch.Tensor:
        """``[R, T, H, …]`` -> ``[R, H, chunks, chunk, …]``; rows of zeros at the end change nothing."""
        filled = F.pad(x, (0, 0) * (x.dim() - 2) + (0, count * _CHUNK - tokens))
        return filled.unflatten(1, (count, _CHUNK)).movedim(3, 1)

    query, key, value, beta = split(query), split(key), split(value), split(beta)
    fade = split(decay).cumsum(dim=-1)  # of each row since the chunk's beginning
    between = (fade.unsqueeze(-1) - fade.unsqueeze(-2)).tril().exp().tril()
    system = (beta.unsqueeze(-1) * (key @ key.mT) * between).tril(-1)
    solved = _inverse_of_one_plus(system)
    wanted = solved @ (value * beta.unsqueeze(-1))
    known = solved @ (key * (beta * fade.exp()).unsqueeze(-1))
    scores = (query @ key.mT) * between
    out = []
    for number in range(count):
        faded = fade[:, :, number]
        errors = wanted[:, :, number] - known[:, :, number] @ state.mT
        seen = (query[:, :, number] * faded.exp().unsqueeze(-1)) @ state.mT
        out.append(seen + scores[:, :, number] @ errors)
        last = faded[..., -1:]
        kept = key[:, :, number] * (last - faded).exp().unsqueeze(-1)
        state = state * last.exp().unsqueeze(-1) + errors.mT @ kept
    return torch.stack(out, dim=2).flatten(2, 3)[:, :, :tokens].transpose(1, 2), state


def _inverse_of_one_plus(lower: torch.Tensor) -> torch.Tensor:
    """``(1 + lower)^-1`` of strictly lower triangular matrices, row by row: a series of powers would lose its digits."""
    size = lower.shape[-1]
    inverse = torch.eye(size, dtype=lower.dtype, device=lower.device).expand(lower.shape).clone()
    for row in range(1, size):
        inverse[..., row, :row] = -(lower[..., row : row + 1, :row] @ inverse[..., :row, :row]).squeeze(-2)
    return inverse
