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

from benchmarks.dp_sync import LISTS
from vllm_ascend_patch.releases.runner import v2_asked_for
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of


class _Clock:
    """Durations in microseconds of the steps of one block. Only steps of real work count; dummy steps have nothing to hide
    behind and are the same in both variants."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.votes: list[float] = []
        self.posts: list[float] = []
        self.preparations: list[float] = []
        self.calls = self.total = 0
        self.real = False

    def synchronised(self, seconds: float) -> None:
        """A step has its agreement, which took the host so long."""
        self.calls += 1
        self.total += 1
        if self.real:
            self.waits.append(seconds * 1e6)
        self.real = False

    def announced(self, begin: float, voted: float) -> None:
        """A vote was computed from ``begin`` on, and has been posted since ``voted``."""
        self.votes.append((voted - begin) * 1e6)
        self.posts.append((time.perf_counter() - voted) * 1e6)

    def take(self) -> dict[str, Any]:
        """What was measured since the last call."""
        taken = {name: getattr(self, name) for name in (*LISTS, "calls")}
        for name in LISTS:
            setattr(self, name, [])
        self.calls = 0
        return taken


def _install_v1(clock: _Clock) -> None:
    from vllm.v1.worker import dp_utils
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from vllm_ascend_patch.seams.step import prepare as step_prepare

    prepare, all_reduce, own_vote = GPUModelRunner._prepare_inputs, dp_utils._run_ar, step_prepare.own_vote

    def timed_prepare(runner: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = prepare(runner, *args, **kwargs)
        clock.preparations.append((time.perf_counter() - start) * 1e6)
        clock.real = True
        return result

    def timed_all_reduce(*args: Any, **kwargs: Any) -> Any:
        if serving.current().step.capturing:
            return all_reduce(*args, **kwargs)
        start = time.perf_counter()
        result = all_reduce(*args, **kwargs)
        clock.synchronised(time.perf_counter() - start)
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
            clock.announced(start, voted)

        session.announce = timed_announce  # type: ignore[method-assign]
        return vote

    GPUModelRunner._prepare_inputs = timed_prepare
    dp_utils._run_ar = timed_all_reduce
    step_prepare.own_vote = timed_vote


def _install_v2(clock: _Clock) -> None:
    """What is timed calls each other by the names of these modules."""
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from vllm_ascend_patch.seams.step import runner_v2

    execute, dispatch, vote_of = GPUModelRunner.execute_model, model_runner.dispatch_cg_and_sync_dp, runner_v2._vote
    decoding, announce, resolve = runner_v2._announce_decoding, runner_v2._announce, runner_v2._resolve
    began = voting = voted = 0.0
    dispatching: float | None = None
    """What a step has spent whose agreement is awaited later, in seconds."""

    def timed_execute(runner: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal began
        clock.real, began = not kwargs.get("dummy_run"), time.perf_counter()
        return execute(runner, *args, **kwargs)

    def timed_decoding(*args: Any) -> None:
        nonlocal voting
        voting = time.perf_counter()
        decoding(*args)
        voting = 0.0

    def timed_vote(*args: Any) -> Any:
        nonlocal voted
        vote = vote_of(*args)
        voted = time.perf_counter()
        return vote

    def timed_announce(*args: Any, **kwargs: Any) -> None:
        start = voting or time.perf_counter()
        announce(*args, **kwargs)
        clock.announced(start, voted)

    def timed_dispatch(*args: Any, **kwargs: Any) -> Any:
        nonlocal dispatching
        start = time.perf_counter()
        result = dispatch(*args, **kwargs)
        took = time.perf_counter() - start
        if isinstance(result[1], runner_v2._LateState):
            dispatching = took
        else:
            clock.synchronised(took)
        return result

    def timed_resolve(*args: Any) -> Any:
        nonlocal dispatching
        start = time.perf_counter()
        if clock.real:
            clock.preparations.append((start - began) * 1e6)
        agreement = resolve(*args)
        if dispatching is not None:
            clock.synchronised(dispatching + time.perf_counter() - start)
        dispatching = None
        return agreement

    GPUModelRunner.execute_model = timed_execute
    model_runner.dispatch_cg_and_sync_dp = timed_dispatch
    vars(runner_v2).update(
        _announce_decoding=timed_decoding, _announce=timed_announce, _vote=timed_vote, _resolve=timed_resolve
    )


_clock = _Clock()
(_install_v2 if v2_asked_for() else _install_v1)(_clock)
_session: Any = None


def _upstream(parallel: Any) -> tuple[str, int]:
    """Transport of upstream's own exchange, and its bytes: rows of int32."""
    if not v2_asked_for():
        return "cpu" if parallel.disable_nccl_for_dp_synchronization else "device", 16 * parallel.data_parallel_size
    from vllm.v1.worker.gpu import dp_utils

    rows = 6 + ("allow_skip_drafts" in parameters_of(dp_utils.dispatch_cg_and_sync_dp))
    return "cpu", 4 * rows * parallel.data_parallel_size


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
            transport, bytes_per_call = _upstream(self.parallel_config)
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
