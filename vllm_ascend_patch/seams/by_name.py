# SPDX-License-Identifier: Apache-2.0
"""Arguments bound by upstream's parameter names, because their order and number change with its releases."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's parameters, in order; ``self`` is one of them."""
    return tuple(inspect.signature(function).parameters)
