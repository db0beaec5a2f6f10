# SPDX-License-Identifier: Apache-2.0
"""Script: operators that a greedy decode step launches on the device besides the model's own, by model runner.

Counted at torch's dispatcher, views and allocations left out. Reads the checkpoint's folder from its command line.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.engine import engine_arguments, generate_offline
from tests.support.processes import report

REQUESTS, STEPS = 3, 12
_NOT_LAUNCHED = ("empty", "new_empty", "as_strided", "detach", "alias", "lift", "_local_scalar_dense", "set_")


class LaunchCounter(TorchDispatchMode):
    """Operators on NPU tensors since it was entered, by name, while ``counting``."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = True
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        on_device = any(isinstance(leaf, torch.Tensor) and leaf.device.type == "npu" for leaf in leaves)
        name = func._schema.name.removeprefix("aten::")
        viewed = func.is_view if name != "to" else result is args[0]
        if self.counting and on_device and not viewed and not name.startswith(_NOT_LAUNCHED):
            self.counts[name] += 1
        return result


class CountingExtension:
    """Methods that ``collective_rpc`` reaches."""

    model_runner: Any

    def count_launches(self) -> None:
        """From now on each step's operators are kept, those of the model and its logits left out."""
        runner = self.model_runner
        self.steps: list[dict[str, int]] = []
        counter = LaunchCounter()

        def outside(function: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                counter.counting = False
                try:
                    return function(*args, **kwargs)
                finally:
                    counter.counting = True

            return run

        def counted(function: Any, ends: bool) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                with counter:
                    result = function(*args, **kwargs)
                if ends:
                    self.steps.append(dict(counter.counts))
                    counter.counts.clear()
                return result

            return run

        model = runner.get_model()
        model.forward, model.compute_logits = outside(model.forward), outside(model.compute_logits)
        runner.execute_model = counted(runner.execute_model, ends=False)
        runner.sample_tokens = counted(runner.sample_tokens, ends=True)

    def launches(self) -> list[dict[str, int]]:
        return self.steps


def main() -> None:
    from vllm import LLM

    extension = "tests.npu.decode_operators.CountingExtension"
    arguments = engine_arguments(sys.argv[1], distributed_executor_backend="uni", worker_extension_cls=extension)
    llm = LLM(**arguments)
    llm.collective_rpc("count_launches")
    generate_offline(llm, [[5 + i, 7, 11] for i in range(REQUESTS)], STEPS)
    (steps,) = llm.collective_rpc("launches")
    middle = steps[len(steps) // 2]
    report({"total": sum(middle.values()), "by name": dict(sorted(middle.items(), key=lambda item: -item[1]))})


if __name__ == "__main__":
    main()
