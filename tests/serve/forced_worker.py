# SPDX-License-Identifier: Apache-2.0
"""What tests mix into a worker to force one MoE method after the other in one engine, and to ask where experts are."""

from __future__ import annotations

from scripts.matrix.worker import MatrixWorker

from .engine_script import ExpertMap


class ForcedWorker(MatrixWorker, ExpertMap):
    """Methods that ``collective_rpc`` reaches."""
