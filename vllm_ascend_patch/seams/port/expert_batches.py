# SPDX-License-Identifier: Apache-2.0
"""Answers upstream that no backend here wants experts' tokens in batches of one size. What steps hold is the scheduler's
business."""

from typing import Any


def use_batched_dp_moe(config: Any) -> bool:
    """False for every ``ParallelConfig``: backends that want such batches are taken back (``npu/config_defaults.py``)."""
    return False
