# SPDX-License-Identifier: Apache-2.0
"""One engine of ``decode_step.py``: a model of random weights, some batches, and what each of their decode steps takes.

Run by it, with a graph mode, a number of layers and batch sizes; the last line of its output is JSON.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from statistics import median
from typing import Any

import torch
import torch_npu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.engine import engine_arguments, generate_offline
from tests.support.npus import has_real_npus
from vllm_ascend_patch.npu.attention.backend import NPUAttentionImpl

NOT_LAUNCHED = (
    "empty",
    "new_empty",
    "as_strided",
    "detach",
    "alias",
    "lift",
    "_local_scalar_dense",
    "set_",
    "record_stream",
)
COPIES = ("copy_", "_to_copy", "clone", "contiguous")
STEPS = 24
VOCABULARY = 512


class Calls(TorchDispatchMode):
    """Counts what is launched through the dispatcher, apart from what only updates a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.updating = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        leaves = tree_leaves((args, kwargs, result))
        on_device = any(isinstance(leaf, torch.Tensor) and leaf.device.type == "npu" for leaf in leaves)
        viewed = func.is_view if name != "to" else result is args[0]
        # vLLM's own operators are Python around others, which are counted where they run.
        if on_device and not (self.updating or viewed or func.namespace == "vllm" or name.startswith(NOT_LAUNCHED)):
            self.counts["copies" if name in COPIES else "launches"] += 1
        return result


@contextmanager
def counted(calls: Calls) -> Iterator[None]:
    """Count the calls of the block: the dispatcher's, replays, updates, events.

    Attention runs inside an operator of vLLM's, where torch has switched the mode off.
    """
    npu = torch_npu.npu
    begin, end, attend = npu.graph_task_update_begin, npu.graph_task_update_end, NPUAttentionImpl.forward
    watched = [(npu.NPUGraph, "replay", "replays"), (npu.Event, "record", "events"), (npu.Event, "wait", "events")]
    watched += [(npu.Stream, "wait_event", "events"), (npu.ExternalEvent, "record", "events")]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in watched]

    def counting(original: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.counts[kind] += 1
            return original(*args, **kwargs)

        return call

    def begins(*args: Any) -> None:
        calls.counts["updates"] += 1
        calls.updating = True
        begin(*args)

    def ends(*args: Any) -> None:
        calls.updating = False
        end(*args)

    def attends(*args: Any, **kwargs: Any) -> Any:
        with calls:
            return attend(*args, **kwargs)

    for (owner, name, kind), (_, _, original) in zip(watched, originals, strict=True):
        setattr(owner, name, counting(original, kind))
    npu.graph_task_update_begin, npu.graph_task_update_end = begins, ends
    NPUAttentionImpl.forward = attends  # type: ignore[method-assign]
    try:
        with calls:
            yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        npu.graph_task_update_begin, npu.graph_task_update_end = begin, end
        NPUAttentionImpl.forward = attend  # type: ignore[method-assign]


class StepWatch:
    """Times the decode steps of one batch size, in seconds of their thread, and counts one of them.

    ``seen`` has, for each step, the time up to its hidden states, that of its forward, and what the device did meanwhile;
    ``sampled`` the time of its sampling, the device's taken off.
    """

    def __init__(self, runner: Any) -> None:
        self.batch = 0
        self.seen: list[tuple[float, float, float]] = []
        self.sampled: list[float] = []
        self.calls, self.sample_calls = Calls(), Calls()
        self._forward = self._device = 0.0
        self._on_device = self._decodes = False
        self._wrap(runner)

    def _wrap(self, runner: Any) -> None:
        execute, sample = runner.execute_model, runner.sample_tokens

        def timed_step(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            decodes = not scheduled.scheduled_new_reqs and scheduled.total_num_scheduled_tokens == self.batch
            self._decodes = decodes
            if decodes and len(self.seen) == STEPS // 2 and not self.calls.counts:
                with counted(self.calls):
                    return execute(scheduled, *args, **kwargs)
            self._forward = self._device = 0.0
            start = time.thread_time()
            result = execute(scheduled, *args, **kwargs)
            if decodes:
                self.seen.append((time.thread_time() - start, self._forward, self._device))
            return result

        def timed_sampling(*args: Any, **kwargs: Any) -> Any:
            if self._decodes and self.calls.counts and not self.sample_calls.counts:
                with counted(self.sample_calls):
                    return sample(*args, **kwargs)
            self._device = 0.0
            start = time.thread_time()
            result = sample(*args, **kwargs)
            if self._decodes:
                self.sampled.append(time.thread_time() - start - self._device)
            return result

        runner.execute_model, runner.sample_tokens = timed_step, timed_sampling
        self._time_forwards(runner)
        torch_npu.npu.NPUGraph.replay = self.on_device(torch_npu.npu.NPUGraph.replay)

    def _time_forwards(self, runner: Any) -> None:
        """Model runner V1 has a method that runs the model; V2 calls the model, or replays a whole step."""

        def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                start = time.thread_time()
                result = forward(*args, **kwargs)
                self._forward += time.thread_time() - start
                return result

            return run

        if hasattr(runner, "_model_forward"):
            runner._model_forward = timed(runner._model_forward)
            return
        model = runner.get_model()
        model.forward = timed(model.forward)
        if runner.cudagraph_manager is not None:
            runner.cudagraph_manager.run_fullgraph = timed(runner.cudagraph_manager.run_fullgraph)

    def on_device(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, whose time is not the host's: a virtual device works in it, or notes what a graph is to do."""

        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._on_device:  # an operator within another
                return work(*args, **kwargs)
            self._on_device = True
            start = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                self._device += time.thread_time() - start
                self._on_device = False

        return timed

    def of(self, batch: int) -> None:
        """Begin with another batch size."""
        self.batch, self.seen, self.sampled = batch, [], []
        self.calls, self.sample_calls = Calls(), Calls()

    def found(self) -> dict[str, Any]:
        """Medians in microseconds, and the calls of one step."""
        host = median(forward - device for _, forward, device in self.seen) * 1e6
        rest = median(step - forward for step, forward, _ in self.seen) * 1e6
        kinds = ("launches", "replays", "updates", "copies", "events")
        return {
            "host_us": round(host, 1),
            "rest_us": round(rest, 1),
            "sample_us": round(median(self.sampled) * 1e6, 1),
            "calls": {kind: self.calls.counts[kind] for kind in kinds},
            "sample_launches": self.sample_calls.counts["launches"] + self.sample_calls.counts["copies"],
        }


def model(folder: str, layers: int) -> str:
    from transformers import MixtralConfig

    MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        sliding_window=None,
        architectures=["MixtralForCausalLM"],
        torch_dtype="float16",
    ).save_pretrained(folder)
    return folder


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    mode, layers, *batches = sys.argv[1], *map(int, sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        arguments = engine_arguments(
            model(folder, layers),
            load_format="dummy",
            max_num_seqs=max(batches),
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
            async_scheduling=False,
            enforce_eager=mode == "NONE",
            compilation_config={} if mode == "NONE" else {"cudagraph_mode": mode, "cudagraph_capture_sizes": batches},
        )
        llm = LLM(**arguments)
    (watch,) = llm.collective_rpc(lambda worker: StepWatch(worker.model_runner))
    if not has_real_npus():
        from vllm_ascend_patch.virtual_npu.registry import put_around_operators

        put_around_operators(watch.on_device)
    found = {}
    for batch in batches:
        watch.of(batch)
        generate_offline(llm, [[3 + request, 4, 5, 6] for request in range(batch)], STEPS)
        found[batch] = watch.found()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
