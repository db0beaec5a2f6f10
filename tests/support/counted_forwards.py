# SPDX-License-Identifier: Apache-2.0
"""Forwards of the model and of its drafter, counted in a vLLM worker (``worker_extension_cls``).

A replay of a whole step runs no Python of the model, so it is counted where it is given its lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORWARDS: dict[str, int] = {"model": 0, "drafter": 0, "whole steps": 0}
"""``model`` counts whole steps, too."""


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
        runner: Any = self.model_runner
        owners = [getattr(runner, name, None) for name in ("drafter", "speculator")]  # of V1 and of V2
        models: list[Any] = [getattr(owner, "model", None) for owner in owners]
        drafter = next((model for model in models if model is not None), None)
        if drafter is not None:
            count("drafter", drafter)
        _count_whole_steps()


def _count_whole_steps() -> None:
    from vllm_ascend_patch.npu.attention.graph_tasks import GraphTasks

    update = GraphTasks.update

    def counted(tasks: GraphTasks, metadata: Mapping[str, Any], stream: Any) -> None:
        FORWARDS["whole steps"] += 1
        FORWARDS["model"] += 1
        update(tasks, metadata, stream)

    GraphTasks.update = counted  # type: ignore[method-assign, assignment]
