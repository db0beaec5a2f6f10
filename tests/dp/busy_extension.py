# SPDX-License-Identifier: Apache-2.0
"""What a vLLM worker can be told to do between steps: to take its time. Mixed in with ``worker_extension_cls``."""

from __future__ import annotations

import time
from typing import Any


class BusyWorker:
    """A method that ``collective_rpc`` reaches."""

    parallel_config: Any

    def keep_busy(self, data_parallel_rank: str, seconds: str) -> None:
        """Sleep in the worker of one data-parallel rank."""
        if self.parallel_config.data_parallel_rank == int(data_parallel_rank):
            time.sleep(float(seconds))
