# SPDX-License-Identifier: Apache-2.0
"""Independent float64 formulas, written element by element in numpy, and helpers to compare with them.

Nothing here calls the kernels or shares code with them.
"""

from __future__ import annotations

import numpy as np
import torch

HALF_TYPES = (torch.float16, torch.bfloat16)

# Half of the last place at the magnitude 1, doubled: one rounding, plus float32 accumulation.
RELATIVE = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-18}


def f64(tensor: torch.Tensor) -> np.ndarray:
    """The values as float64 numpy."""
    return tensor.double().numpy()


def assert_close(result: torch.Tensor, expected: np.ndarray, scale: float = 1.0) -> None:
    """Equal up to one rounding of the result's dtype at magnitude ``scale``."""
    tolerance = RELATIVE[result.dtype]
    np.testing.assert_allclose(f64(result), expected, rtol=tolerance, atol=tolerance * scale)


def softmax(row: np.ndarray) -> np.ndarray:
    """Softmax of one row."""
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x))."""
    return x / (1.0 + np.exp(-x))


def attention_row(query: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """One head, one query over the keys that it may see."""
    return softmax(keys @ query * scale) @ values


def quantised(row: np.ndarray) -> tuple[np.ndarray, float]:
    """Symmetric int8 of one row: before rounding, and the scale."""
    scale = np.abs(row).max() / 127.0
    return (row / scale if scale else row * 0.0), float(scale)


def assert_quantised(result: torch.Tensor, scales: torch.Tensor, expected: np.ndarray) -> None:
    """Rows of int8 and their scales against unquantised rows: every element at most half a step (and a hair) away."""
    assert result.dtype == torch.int8
    assert scales.dtype == torch.float32
    for row, scale, want in zip(result.numpy(), scales.numpy(), expected, strict=True):
        exact, exact_scale = quantised(want)
        np.testing.assert_allclose(scale, exact_scale, rtol=1e-5)
        np.testing.assert_allclose(row, exact, atol=0.51)


def is_poison(tensor: torch.Tensor) -> bool:
    """True when no element was written."""
    if tensor.dtype.is_floating_point:
        return bool(tensor.isnan().all())
    mark = {torch.int8: -128, torch.int32: -(2**31), torch.int64: -(2**63)}[tensor.dtype]
    return bool((tensor == mark).all())
