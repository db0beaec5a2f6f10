# SPDX-License-Identifier: Apache-2.0
"""What lies between an expert's two matrix products: vLLM's names, their formulas, and the operators that compute them.

Elementwise work only; the products, biases and quantisation are ``experts.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .errors import MoEConfigError

_ALIASES = {"gelu_pytorch_tanh": "gelu_tanh"}
OAI_ALPHA, OAI_LIMIT, OAI_BIAS = 1.702, 7.0, 1.0
"""gpt-oss's constants, which vLLM's ``swigluoai`` has built in."""
STEP_LIMIT = 7.0
"""Step-3.5's limit, which vLLM's ``swiglustep`` has built in."""


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


# Activations without a gate, and with one: act(gate) * up.
_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu_no_mul": F.silu,
    "gelu_no_mul": F.gelu,
    "gelu_tanh_no_mul": _gelu_tanh,
    "relu2_no_mul": _relu2,
}
_GATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": F.gelu, "gelu_tanh": _gelu_tanh}
SUPPORTED = ("silu", "swigluoai", "swigluoai_uninterleave", "swiglustep", *_GATED, *_PLAIN)


@dataclass(frozen=True)
class Activation:
    """An activation with its numbers. ``I`` is the experts' intermediate size on this rank.

    Attributes:
        name: vLLM's.
        alpha: SwiGLU's factor inside the sigmoid.
        limit: the gate is at most, the other half at most in size; None for no limit.
        bias: what is added to the half that is not the gate.
    """

    name: str = "silu"
    alpha: float = 1.0
    limit: float | None = None
    bias: float = 0.0

    @classmethod
    def of(
        cls, name: Any, alpha: float | None = None, limit: float | None = None, bias: float | None = None
    ) -> Activation:
        """vLLM's ``name`` (text, or its enum's member) with the numbers that a layer gives, or else its own.

        Raises:
            MoEConfigError: an activation that is not served.
        """
        text = str(getattr(name, "value", name)).lower()
        text = _ALIASES.get(text, text)
        if text not in SUPPORTED:
            raise MoEConfigError(f"the expert activation {text!r} is not supported; supported: {', '.join(SUPPORTED)}")
        given: tuple[float, float | None, float]
        if text == "swigluoai":
            given = (OAI_ALPHA, OAI_LIMIT, OAI_BIAS)
        elif text == "swiglustep":
            given = (1.0, STEP_LIMIT, 0.0)
        else:
            given = (1.0, None, 0.0)
        if limit is None:
            limit = given[1]
        if text == "swigluoai_uninterleave" and limit is None:
            raise MoEConfigError("the expert activation 'swigluoai_uninterleave' needs a limit (swiglu_limit)")
        return cls(text, given[0] if alpha is None else alpha, limit, given[2] if bias is None else bias)

    @property
    def gated(self) -> bool:
        """Whether the first product has a gate beside each of its ``I`` columns."""
        return self.name not in _PLAIN

    @property
    def interleaved(self) -> bool:
        """Whether gates and the columns that they gate alternate, in place of all gates coming first."""
        return self.name == "swigluoai"

    @property
    def width(self) -> int:
        """Columns of the first product for each of ``I``."""
        return 2 if self.gated else 1

    @property
    def plain_swiglu(self) -> bool:
        """Whether it is what ``npu_swiglu`` computes, and its relatives that quantise."""
        return self.name == "silu" and self.limit is None

    def __call__(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """``[A, width * I]`` -> ``[A, I]``. Rows past ``counts.sum()`` hold whatever was in memory, as they may before."""
        import torch_npu

        if self.plain_swiglu:
            return torch_npu.npu_swiglu(x)
        if self.name in _PLAIN:
            return _PLAIN[self.name](x)
        if self.name in _GATED:
            gate, up = x.chunk(2, dim=-1)
            return _GATED[self.name](gate) * up
        assert self.limit is not None
        if self.name == "swiglustep":  # clamped after the sigmoid, which the operator does not do
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)
        if not hasattr(torch_npu, "npu_clipped_swiglu"):  # torch_npu 2.7
            return self._clipped(x)
        return torch_npu.npu_clipped_swiglu(
            x,
            group_index=counts,
            alpha=self.alpha,
            limit=self.limit,
            bias=self.bias,
            interleaved=self.interleaved,
        )

    def _clipped(self, x: torch.Tensor) -> torch.Tensor:
        """As ``npu_clipped_swiglu``, in torch; in float32 between, as the operator."""
        assert self.limit is not None
        gate, up = (x[..., ::2], x[..., 1::2]) if self.interleaved else x.chunk(2, dim=-1)
        gate, up = gate.float().clamp(max=self.limit), up.float().clamp(-self.limit, self.limit)
        return (gate * torch.sigmoid(self.alpha * gate) * (up + self.bias)).to(x.dtype)


SWIGLU = Activation()
