# SPDX-License-Identifier: Apache-2.0
"""The worker's half of ``dp_sync.py``: times the data-parallel sync inside real engine steps, ours and upstream's in turn.

Without a session the seams call upstream's untouched functions, so switching means taking the session away, which is done
only while no step runs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vllm.v1.worker import dp_utils
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from benchmarks.dp_sync import LISTS
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.step import prepare as step_prepare


class _Clock:
    """Durations in microseconds of the steps of one block. Only steps of real work count; dummy steps have nothing to hide
    behind and are the same in both variants."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.votes: list[float] = []
        self.posts: list[float] = []
        self.preparations: list[float] = []
        self.calls = self.total = 0
        self._real = False

    def install(self) -> None:
        prepare, all_reduce, own_vote = GPUModelRunner._prepare_inputs, dp_utils._run_ar, step_prepare.own_vote

        def timed_prepare(runner: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = prepare(runner, *args, **kwargs)
            self.preparations.append((time.perf_counter() - start) * 1e6)
            self._real = True
            return result

        def timed_all_reduce(*args: Any, **kwargs: Any) -> Any:
            if serving.current().step.capturing:
                return all_reduce(*args, **kwargs)
            self.calls += 1
            self.total += 1
            start = time.perf_counter()
            result = all_reduce(*args, **kwargs)
            if self._real:
                self.waits.append((time.perf_counter() - start) * 1e6)
            self._real = False
            return result

        def timed_vote(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            vote = own_vote(*args, **kwargs)
            voted = time.perf_counter()
            session = serving.current().session
            if session is None or vote is None:
                return vote
            announce = session.announce

            def timed_announce(*inner: Any, **inner_kwargs: Any) -> None:
                session.announce = announce  # type: ignore[method-assign]
                announce(*inner, **inner_kwargs)
                self.votes.append((voted - start) * 1e6)
                self.posts.append((time.perf_counter() - voted) * 1e6)

            session.announce = timed_announce  # type: ignore[method-assign]
            return vote

        GPUModelRunner._prepare_inputs = timed_prepare
        dp_utils._run_ar = timed_all_reduce
        step_prepare.own_vote = timed_vote

    def take(self) -> dict[str, Any]:
        """What was measured since the last call."""
        taken = {name: getattr(self, name) for name in (*LISTS, "calls")}
        for name in LISTS:
            setattr(self, name, [])
        self.calls = 0
        return taken


_clock = _Clock()
_clock.install()
_session: Any = None


class TimedWorker:
    """Methods that ``collective_rpc`` reaches on every rank."""

    rank: int
    parallel_config: Any

    def write_calls(self, folder: str) -> None:
        """How many steps this rank has synchronised, into its file."""
        Path(folder, f"calls.rank{self.parallel_config.data_parallel_rank}").write_text(str(_clock.total))

    def begin_block(self, variant: str) -> None:
        """Use ``variant`` ("ours" or "upstream") from the next step on. No step may be running."""
        global _session
        state = serving.current()
        _session = _session or state.session
        state.session = _session if variant == "ours" else None
        _clock.take()

    def end_block(self, variant: str, scenario: str, folder: str) -> None:
        """Append what was measured to this rank's file."""
        measured = _clock.take()
        rank = self.parallel_config.data_parallel_rank
        if variant == "ours":
            transport, bytes_per_call = _session.channel.transport.name, _session.channel.transport.payload_bytes
        else:
            transport = "cpu" if self.parallel_config.disable_nccl_for_dp_synchronization else "device"
            bytes_per_call = 16 * self.parallel_config.data_parallel_size  # four int32 rows
        line = {
            "variant": variant,
            "scenario": scenario,
            "rank": rank,
            "transport": transport,
            "bytes": bytes_per_call,
            **measured,
        }
        with Path(folder, f"rank{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
