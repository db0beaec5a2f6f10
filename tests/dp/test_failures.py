# SPDX-License-Identifier: Apache-2.0
"""What happens when a rank dies, stops, fails, changes its mind or runs something else: an error on every rank, in time,
that says which rank, step and phase. Real processes; a hang fails the test."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import Outcome, run_ranks, values_of
from vllm_ascend_patch.core.dp import DraftPlan, DraftVote, RankFailedError, Vote
from vllm_ascend_patch.core.dp.activity import Landmarks
from vllm_ascend_patch.core.dp.session import DPSession
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE, STALL_FACTOR, Watchdog

from .sessions import host_session

TIMEOUT = 2.0

over_both = pytest.mark.parametrize("transport", ["cpu", "shared"])
"""Gloo notices a closed connection; shared memory notices nothing, so that the watchdog alone must find who is missing."""


def _steps(session: DPSession, count: int) -> None:
    for number in range(count):
        session.announce(Vote(number + 1, number + 1), with_prefill=False)
        session.resolve(Vote(number + 1, number + 1))
        session.channel.progress.enter("between steps", blocking=False)


def _watchdog(session: DPSession) -> Watchdog:
    assert session.channel.watchdog is not None
    return session.channel.watchdog


def _survivors(outcomes: list[Outcome], lost: int) -> list[str]:
    errors = [o.error for rank, o in enumerate(outcomes) if rank != lost]
    assert all(errors), f"a survivor saw no error: {outcomes}"
    assert all(o.exit_code for rank, o in enumerate(outcomes) if rank != lost), "survivors must exit non-zero"
    return [str(e) for e in errors]


def _killed(rank: int, size: int, transport: str) -> float:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 5)
    if rank == 1:
        session.channel.progress.enter("forward", blocking=True)
        for other in {*range(size)} - {rank}:
            _stay_until(f"seen by {other}")
        os.kill(os.getpid(), signal.SIGKILL)
    while _watchdog(session).board.peer(1).phase != "forward":
        time.sleep(0.01)
    _say(f"seen by {rank}")
    start = time.monotonic()
    try:
        _steps(session, 5)
    finally:
        assert time.monotonic() - start < 10 * TIMEOUT, "found too late"
    return 0.0


@over_both
@pytest.mark.parametrize("size", [2, 4])
def test_survivors_of_a_killed_rank_name_it_and_exit_non_zero(size: int, transport: str) -> None:
    outcomes = run_ranks(_killed, size, transport, timeout=60)
    assert outcomes[1].exit_code == -signal.SIGKILL
    for error in _survivors(outcomes, lost=1):
        assert "rank 1 (pid" in error
        assert "phase 'forward' of step 5" in error


def _killed_elsewhere(rank: int, size: int) -> list[str]:
    lines = _log_lines("session")
    session = host_session(rank, size, TIMEOUT)
    _watchdog(session).board._host = f"host-{rank}"  # no rank sees another's process
    _steps(session, 5)
    session.channel.progress.enter("forward", blocking=True)
    if rank == 1:
        _stay_until("seen")
        os.kill(os.getpid(), signal.SIGKILL)
    while _watchdog(session).board.peer(1).phase != "forward":
        time.sleep(0.01)
    _say("seen")
    with pytest.raises(RuntimeError) as broken:
        dist.all_reduce(torch.ones(1))
    session.abandon(broken.value)
    return lines


def test_a_collective_of_the_forward_that_breaks_names_the_rank_and_its_host() -> None:
    survivor, _ = run_ranks(_killed_elsewhere, 2, timeout=60)
    (line,) = survivor.value
    assert line.startswith("rank 0 cannot go on: data-parallel step 5: a collective broke (")
    assert re.search(r"Behind it: rank 1 \(pid \d+ on host-1\), last seen in phase 'forward' of step 5", line)


def _hanging(rank: int, size: int, transport: str) -> None:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    if rank == 0:  # alive, with a heartbeat, but it never leaves the step
        session.channel.progress.enter("forward", blocking=True)
        time.sleep(4 * TIMEOUT)
        return
    try:
        _steps(session, 1)
    except Exception as error:
        session.abandon(error)  # as an engine does; else the other survivor may only see that this process is gone
        raise


@over_both
def test_a_rank_that_hangs_inside_a_step_is_named_with_step_and_phase_after_the_timeout(transport: str) -> None:
    start = time.monotonic()
    outcomes = run_ranks(_hanging, 3, transport, timeout=60)
    assert time.monotonic() - start > TIMEOUT
    for error in _survivors(outcomes, lost=0):
        assert error.startswith(("RankMissingError", "RankFailedError"))
        assert "rank 0 (pid" in error
        assert "phase 'forward' of step 3" in error
        assert "VLLM_ASCEND_PATCH_DP_TIMEOUT" in error or "no heartbeat" in error


def _log_lines(module: str = "watchdog") -> list[str]:
    """What a module of this process logs from now on."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(f"vllm_ascend_patch.core.dp.{module}").addHandler(handler)
    return lines


def save_state(seconds: float) -> None:
    time.sleep(seconds)


def _busy(rank: int, size: int, transport: str) -> tuple[float, list[str]]:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    lines = _log_lines()
    if rank == 1:
        save_state(4.5 * TIMEOUT)
    start = time.monotonic()
    _steps(session, 3)
    waited = time.monotonic() - start
    session.close()
    return waited, lines


@over_both
def test_a_live_rank_that_is_busy_outside_a_step_is_waited_for_with_a_line_per_timeout(transport: str) -> None:
    outcomes = values_of(run_ranks(_busy, 3, transport, timeout=60))
    for waiting in (0, 2):
        waited, lines = outcomes[waiting]
        assert waited > 3.5 * TIMEOUT
        assert 3 <= len(lines) <= 4, lines
        for line in lines:
            assert f"data-parallel step 4: rank {waiting} has waited" in line
            assert "rank 1 (pid" in line
            assert "phase 'between steps' of step 3" in line
            assert "runs save_state (test_failures.py:" in line
            assert "It is alive, so this rank goes on waiting" in line


def _busy_then_hanging(rank: int, size: int) -> None:
    session = host_session(rank, size, TIMEOUT)
    _steps(session, 3)
    if rank == 1:
        save_state(2 * TIMEOUT)
        session.channel.progress.enter("prepare", blocking=True)
        time.sleep(5 * TIMEOUT)
        return
    start = time.monotonic()
    try:
        _steps(session, 1)
    finally:
        assert 2.5 * TIMEOUT < time.monotonic() - start < 4 * TIMEOUT


def test_a_rank_that_hangs_when_it_comes_back_has_one_timeout_from_then_on() -> None:
    for error in _survivors(run_ranks(_busy_then_hanging, 2, timeout=60), lost=1):
        assert error.startswith("RankMissingError")
        assert "phase 'prepare' of step 3" in error


def wait_for_a_call(seconds: float) -> None:
    time.sleep(seconds)


def main_loop(seconds: float) -> None:
    wait_for_a_call(seconds)


LANDMARKS = Landmarks(frozenset({"main_loop"}), frozenset({"wait_for_a_call"}))


def _idle(rank: int, size: int) -> None:
    session = host_session(rank, size, 1.0, landmarks=LANDMARKS)
    _steps(session, 3)
    if rank == 1:
        main_loop(10)
        return
    lines = _log_lines()
    start = time.monotonic()
    try:
        _steps(session, 1)
    finally:
        assert STALL_FACTOR - 0.5 < time.monotonic() - start < STALL_FACTOR + 3
        assert "rank 1 (pid" in lines[0]
        assert "waits in wait_for_a_call" in lines[0]
        assert "idle while others wait for it is an error after 5 s" in lines[0]


def test_a_rank_whose_engine_begins_no_step_is_an_error_in_the_end() -> None:
    for error in _survivors(run_ranks(_idle, 2, timeout=60), lost=1):
        assert error.startswith("RankMissingError")
        assert "waits in wait_for_a_call" in error


def _suspended(rank: int, size: int, transport: str) -> None:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)  # neither steps nor heartbeats, but the connections stay open
    try:
        _steps(session, 1)
    finally:
        os.kill(_watchdog(session).board.peer(1).pid, signal.SIGKILL)  # or the test would wait for it


@over_both
def test_a_suspended_process_is_found_by_its_silence(transport: str) -> None:
    start = time.monotonic()
    for error in _survivors(run_ranks(_suspended, 2, transport, timeout=40), lost=1):
        assert error.startswith("RankMissingError")
        assert "rank 1 (pid" in error
        assert "silent for" in error
    assert time.monotonic() - start < 10 * TIMEOUT


def _failing(rank: int, size: int, transport: str) -> float:
    session = host_session(rank, size, 60.0, transport=transport)
    _steps(session, 2)
    if rank == 2:
        error = ValueError("out of blocks")
        session.announce(Vote(1, 1), with_prefill=False)
        session.abandon(error)
        raise error
    start = time.monotonic()
    try:
        _steps(session, 2)
    except Exception as error:
        assert time.monotonic() - start < 20, "the report should beat the timeout of 60 s"
        session.abandon(error)  # as an engine does: the rank that has the store stays until the others have read
        raise error
    return 0.0


@over_both
def test_an_exception_on_one_rank_reaches_the_others_before_any_timeout(transport: str) -> None:
    for error in _survivors(run_ranks(_failing, 3, transport, timeout=60), lost=2):
        assert error.startswith("RankFailedError")
        assert "rank 2 (pid" in error
        assert "ValueError: out of blocks" in error


def _stuck_in_forward(rank: int, size: int) -> None:
    session = host_session(rank, size, TIMEOUT)
    _watchdog(session)._grace = 1.0
    _steps(session, 3)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    session.channel.progress.enter("forward", blocking=True)
    time.sleep(60)  # as a device collective would: no Python code runs, nothing can raise here


def test_a_main_thread_that_cannot_be_reached_is_ended_from_outside() -> None:
    outcomes = run_ranks(_stuck_in_forward, 3, timeout=40)
    assert [o.exit_code for o in outcomes] == [EXIT_CODE, -signal.SIGKILL, EXIT_CODE]


def _store_host_killed(rank: int, size: int, transport: str) -> None:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    if rank == 0:  # its process holds the store that the others' heartbeats go through
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)  # less than the grace: a rank that does not wait for anyone is ended then
    _steps(session, 2)


def _store_host_killed_before_anybody_read(rank: int, size: int) -> None:
    session = host_session(rank, size, 60.0)  # heartbeats every 2 s: the others have not read yet that rank 0 runs
    _steps(session, 3)
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    _steps(session, 2)


def test_losing_the_store_before_the_first_heartbeat_names_its_rank_and_leaves_the_main_thread_to_raise() -> None:
    outcomes = run_ranks(_store_host_killed_before_anybody_read, 3, timeout=60)
    for error in _survivors(outcomes, lost=0):
        assert error.startswith("RankMissingError")
        assert "rank 0" in error


@over_both
def test_losing_the_rank_that_hosts_the_store_is_no_hang_either(transport: str) -> None:
    for error in _survivors(run_ranks(_store_host_killed, 3, transport, timeout=60), lost=0):
        assert "rank 0" in error


def _changed_vote(rank: int, size: int) -> None:
    session = host_session(rank, size, TIMEOUT)
    _steps(session, 2)
    session.announce(Vote(8, 8, graph_mode=2), with_prefill=False)
    session.resolve(Vote(8, 8, graph_mode=0 if rank == 1 else 2))
    _steps(session, 1)


def test_a_decision_that_changed_after_it_was_sent_is_an_error_on_every_rank() -> None:
    outcomes = run_ranks(_changed_vote, 3, timeout=60)
    assert outcomes[1].error is not None
    assert "VoteChangedError: rank 1 announced" in outcomes[1].error
    for error in _survivors(outcomes, lost=1):
        assert "VoteChangedError: rank 1 announced" in error


def _extra_drafter_forward(rank: int, size: int) -> None:
    session = host_session(rank, size, TIMEOUT)
    _steps(session, 2)
    if rank == 1:
        session.resolve(Vote(1, 1))  # a drafter's forward that the others do not run
        return
    _steps(session, 1)


def test_ranks_in_different_forwards_all_find_it_in_the_same_matrix() -> None:
    outcomes = run_ranks(_extra_drafter_forward, 3, timeout=60)
    for outcome in outcomes:
        assert outcome.error is not None
        assert "StepMismatchError" in outcome.error
        assert "rank 0: main #2, rank 1: draft #2, rank 2: main #2" in outcome.error


def _wrong_draft_plan(rank: int, size: int) -> None:
    session = host_session(rank, size, TIMEOUT)
    vote = Vote(8, 8)
    session.announce(vote, False, DraftPlan(DraftVote(8, 8), DraftVote(2, 2)))
    session.resolve(vote)
    session.resolve(Vote(9 if rank == 0 else 8, 9 if rank == 0 else 8))
    _steps(session, 1)


def test_a_drafter_forward_other_than_declared_is_an_error_on_every_rank() -> None:
    outcomes = run_ranks(_wrong_draft_plan, 2, timeout=60)
    assert "VoteChangedError: rank 0 declared its first drafter forward" in str(outcomes[0].error)
    assert "rank 0 declared its first drafter forward" in str(outcomes[1].error)


def _different_software(rank: int, size: int) -> None:
    host_session(rank, size, TIMEOUT, {"torch-npu": "2.13.0" if rank != 2 else "2.7.1", "model": "m"})


def test_a_rank_with_other_software_is_named_at_start_up_by_every_rank() -> None:
    for outcome in run_ranks(_different_software, 4, timeout=60):
        assert "FingerprintMismatchError" in str(outcome.error)
        assert "rank 2: torch-npu: '2.7.1' instead of '2.13.0'" in str(outcome.error)


def _late_start(rank: int, size: int) -> list[str]:
    lines = _log_lines("fingerprint")
    if rank == 2:
        time.sleep(3.5)
    host_session(rank, size, 1.0).close()
    return lines


def test_whoever_waits_at_start_up_says_for_whom() -> None:
    first, second, nothing = values_of(run_ranks(_late_start, 3, together=True, timeout=60))
    for rank, lines in enumerate((first, second)):
        assert 2 <= len(lines) <= 4, lines
        for line in lines:
            assert re.match(rf"still starting: rank {rank} has waited \d s for rank\(s\) 2 to say what they run", line)
    assert nothing == []


def _orderly_exit(rank: int, size: int, transport: str) -> str:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    if rank == 1:
        session.close()
        return "left"
    time.sleep(1.3 * TIMEOUT)  # idle: a peer that shut down in order is no reason to die
    session.close()
    return "stayed"


@over_both
def test_an_idle_rank_survives_the_orderly_exit_of_another(transport: str) -> None:
    assert values_of(run_ranks(_orderly_exit, 2, transport, timeout=60)) == ["stayed", "left"]


def _left_behind(rank: int, size: int) -> list[str]:
    session = host_session(rank, size, TIMEOUT)
    assert session.channel.watchdog is not None
    session.channel.watchdog._grace = 0.5
    _steps(session, 3)
    lines = _log_lines()
    if rank == 0:
        time.sleep(1.5)
    session.close()
    return lines


def test_an_idle_rank_says_once_that_it_cannot_answer_without_the_one_that_left() -> None:
    (line,), nothing = values_of(run_ranks(_left_behind, 2, timeout=60))
    assert "rank 0 is idle and cannot answer another request: rank 1 (pid" in line
    assert f" on {socket.gethostname()})" in line
    assert nothing == []


def _stay_until(event: str) -> None:
    """Keep this process and its connections until another rank says that ``event`` has happened."""
    _job_store().wait([event], timedelta(seconds=45))


def _say(event: str) -> None:
    _job_store().set(event, "1")


def _job_store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _leaving(rank: int, size: int, transport: str) -> None:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _watchdog(session)._grace = 0.5
    _steps(session, 3)
    if rank == 1:
        session.close()
        _stay_until("found")
        return
    try:
        _steps(session, 1)
    finally:
        _say("found")


@over_both
def test_a_rank_that_left_is_named_by_one_that_still_needs_it(transport: str) -> None:
    for error in _survivors(run_ranks(_leaving, 2, transport, timeout=60), lost=1):
        assert "LeftError: rank 1 (pid" in error
        assert "shut down" in error


def _abandoned(rank: int, size: int, transport: str) -> str:
    session = host_session(rank, size, TIMEOUT, transport=transport)
    _steps(session, 3)
    if rank == 0:
        session.announce(Vote(1, 1), with_prefill=False)
        session.abandon(ValueError("no room"))  # waits for the others for a second, not for ever
        _say("let go")
        _stay_until("told")
    else:
        _stay_until("let go")
        with pytest.raises(RankFailedError, match=r"rank 0 .* failed: ValueError: no room"):
            _steps(session, 2)
        _say("told")
    return "told"


@over_both
def test_a_rank_lets_go_of_a_step_that_no_other_joins(transport: str) -> None:
    assert values_of(run_ranks(_abandoned, 2, transport, timeout=60)) == ["told", "told"]


def _slow_start(rank: int, size: int, transport: str) -> str:
    session = host_session(rank, size, 1.0, transport=transport)
    if rank == 0:
        time.sleep(4)  # four timeouts of loading weights
    session.expect_dummy(idle=False)
    session.resolve(Vote(4, 4))
    session.close()
    return "ran"


@over_both
def test_while_starting_a_slow_rank_is_waited_for(transport: str) -> None:
    assert values_of(run_ranks(_slow_start, 2, transport, together=True, timeout=60)) == ["ran", "ran"]


def test_a_second_vector_before_the_first_was_used_is_refused() -> None:
    def double(rank: int, size: int) -> None:
        session = host_session(rank, size, TIMEOUT)
        session.announce(Vote(1, 1), with_prefill=False)
        session.announce(Vote(2, 2), with_prefill=False)

    for outcome in run_ranks(double, 2, timeout=60):
        assert "a new step begins although the vector of the announced one" in str(outcome.error)
