# SPDX-License-Identifier: Apache-2.0
"""torch.distributed with backend hccl over real processes: the data arrives, and failures are named on every rank."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.ranks import Outcome, run_ranks

from . import hccl_checks

pytestmark = pytest.mark.usefixtures("npu")


def answers_of(
    function: Callable[..., Any], size: int, *arguments: Any, seconds: float, without: tuple[int, ...] = ()
) -> dict[int, Any]:
    """rank -> what ``function`` returned there, for all ranks but ``without``, which may die."""
    outcomes = run_ranks(function, size, *arguments, group=None, start="forkserver", together=True, timeout=seconds)
    return {rank: answer(rank, outcome) for rank, outcome in enumerate(outcomes) if rank not in without}


def answer(rank: int, outcome: Outcome) -> Any:
    assert outcome.error is None, f"rank {rank}: {outcome.trace}"
    assert outcome.value is not None, f"rank {rank} died"
    return outcome.value


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def world(request: pytest.FixtureRequest) -> dict[int, dict[str, str]]:
    """What every rank of a world found in every check."""
    return answers_of(hccl_checks.run_all, request.param, seconds=240)


@pytest.mark.parametrize("check", list(hccl_checks.CHECKS))
def test_every_rank_agrees(world: dict[int, dict[str, str]], check: str) -> None:
    for rank, found in world.items():
        assert found.get(check) == "", f"rank {rank}: {found.get(check, 'an earlier check failed')}"


def errors(function: Callable[..., Any], size: int, *arguments: Any, without: tuple[int, ...] = ()) -> dict[int, str]:
    """rank -> the error it met, for all ranks but ``without``; each within 25 s."""
    found = {}
    for rank, (message, seconds) in answers_of(function, size, *arguments, seconds=100, without=without).items():
        assert message, f"rank {rank} met no error"
        assert seconds < 25, f"rank {rank} needed {seconds:.0f} s to say: {message}"
        found[rank] = message
    return found


@pytest.mark.parametrize(("size", "victim"), [(2, 1), (4, 0), (4, 2)])
def test_the_death_of_a_rank_is_an_error_with_its_name_and_the_call(size: int, victim: int) -> None:
    found = errors(hccl_checks.a_rank_dies, size, victim, without=(victim,))
    for rank, message in found.items():
        assert f"hccl all_reduce(Float, SUM) on rank {rank}: rank {victim} is gone" in message


def test_another_call_is_named_on_both_sides() -> None:
    found = errors(hccl_checks.a_rank_calls_something_else, 3)
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[0]
    assert "rank 0 called all_reduce(Float, SUM)" in found[0]
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[1]
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[2]


def test_another_size_is_named() -> None:
    found = errors(hccl_checks.a_rank_has_another_size, 2)
    assert "rank 1 sends 20 bytes to rank 0, which expects 16" in found[0]
    assert "rank 0 sends 16 bytes to rank 1, which expects 20" in found[1]


def test_another_data_type_is_named() -> None:
    found = errors(hccl_checks.a_rank_has_another_type, 2)
    assert "rank 1 called all_reduce(Int, SUM)" in found[0]


def test_a_rank_that_does_not_come_is_named_after_the_time_limit() -> None:
    found = errors(hccl_checks.a_rank_does_not_come, 3, without=(1,))
    assert "rank 1 did not make this call within 3 s" in found[0] + found[2]


def test_a_group_that_failed_says_so_at_once() -> None:
    found = errors(hccl_checks.a_failed_group_stays_failed, 2)
    assert "this group failed before: hccl all_reduce(Float, SUM) on rank 0" in found[0]


def test_a_message_that_nobody_sends() -> None:
    found = errors(hccl_checks.nobody_sends, 2, without=(1,))
    assert "hccl recv from rank 1 on rank 0: rank 1 did not send within 3 s" in found[0]


def test_a_message_of_another_size() -> None:
    found = errors(hccl_checks.a_message_has_another_size, 2, without=(1,))
    assert "rank 1 sends 20 bytes, the receiving tensor has 12" in found[0]
