# SPDX-License-Identifier: Apache-2.0
"""What the tables of broken calls are made of: a legal call, and changes with the text that each must provoke."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

F = torch.float32


def zeros(*shape: int, dtype: torch.dtype = F) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def i32(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def i64(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


def i8(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int8)


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float16)


class Legal:
    """A legal call; ``broken`` makes it again with changed arguments."""

    def __init__(self, operator: Callable[..., Any], /, **arguments: Any) -> None:
        self.operator, self.arguments = operator, arguments
        operator(**arguments)

    def broken(self, changes: dict[str, Any]) -> None:
        self.operator(**{**self.arguments, **changes})


#: A legal call, and (changes, text of the error) for each way to break it.
Table = tuple[Legal, list[tuple[dict[str, Any], str]]]
