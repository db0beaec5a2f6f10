# SPDX-License-Identifier: Apache-2.0
"""Forwards of the model and of its drafter, counted in a vLLM worker (``worker_extension_cls``)."""

from __future__ import annotations

from typing import Any

FORWARDS: dict[str, int] = {"model": 0, "drafter": 0}


class ForwardsWorker:
    """Methods that ``collective_rpc`` reaches."""

    model_runner: Any

    def count_forwards(self) -> None:
        """Count forwards of the model and of its drafter from now on."""

        def count(name: str, model: Any) -> None:
            def counted(*_: Any) -> None:
                FORWARDS[name] += 1

            model.register_forward_pre_hook(counted)

        count("model", self.model_runner.get_model())
        drafter = getattr(getattr(self.model_runner, "drafter", None), "model", None)
        if drafter is not None:
            count("drafter", drafter)
