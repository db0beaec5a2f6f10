# SPDX-License-Identifier: Apache-2.0
"""Lets vLLM make the configuration of experts without a gate, which it refuses on devices that are not its own."""

from __future__ import annotations

from typing import Any


def accept_ungated(original: Any, config: Any) -> None:
    """Upstream's ``__post_init__``, whose last statement is the refusal: all before it is done when it raises."""
    try:
        original(config)
    except NotImplementedError as refusal:
        if config.is_act_and_mul or "is_act_and_mul=False" not in str(refusal):
            raise
