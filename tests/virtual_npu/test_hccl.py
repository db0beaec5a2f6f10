# SPDX-License-Identifier: Apache-2.0
"""torch.distributed with backend hccl over real processes: the data arrives, and failures are named on every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import hccl_checks
from .launch import ranks

pytestmark = pytest.mark.usefixtures("npu")


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any] | None]:
    """What every rank of a world found in every check."""
    return ranks(hccl_checks.run_all, request.param, tmp_path_factory.mktemp("ranks"), seconds=240)


@pytest.mark.parametrize("check", list(hccl_checks.CHECKS))
def test_every_rank_agrees(world: list[dict[str, Any] | None], check: str) -> None:
    for rank, answer in enumerate(world):
        assert answer is not None, f"rank {rank} died"
        assert "value" in answer, f"rank {rank}: {answer['trace']}"
        assert answer["value"].get(check) == "", f"rank {rank}: {answer['value'].get(check, 'an earlier check failed')}"


def errors(
    function: Callable[..., Any], size: int, folder: Path, *arguments: Any, without: tuple[int, ...] = ()
) -> dict[int, str]:
    """rank -> the error it met, for all ranks but `without`; each within 25 s."""
    answers = ranks(function, size, folder, *arguments, seconds=100)
    found = {}
    for rank, answer in enumerate(answers):
        if rank in without:
            continue
        assert answer is not None, f"rank {rank} died"
        assert "value" in answer, f"rank {rank}: {answer['trace']}"
        message, seconds = answer["value"]
        assert message, f"rank {rank} met no error"
        assert seconds < 25, f"rank {rank} needed {seconds:.0f} s to say: {message}"
        found[rank] = message
    return found


@pytest.mark.parametrize(("size", "victim"), [(2, 1), (4, 0), (4, 2)])
def test_the_death_of_a_rank_is_an_error_with_its_name_and_the_call(size: int, victim: int, tmp_path: Path) -> None:
    found = errors(hccl_checks.a_rank_dies, size, tmp_path, victim, without=(victim,))
    for rank, message in found.items():
        assert f"hccl all_reduce(Float, SUM) on rank {rank}: rank {victim} is gone" in message


def test_another_call_is_named_on_both_sides(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_rank_calls_something_else, 3, tmp_path)
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[0]
    assert "rank 0 called all_reduce(Float, SUM)" in found[0]
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[1]
    assert "rank 1 called broadcast(Float, from group rank 0)" in found[2]


def test_another_size_is_named(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_rank_has_another_size, 2, tmp_path)
    assert "rank 1 sends 20 bytes to rank 0, which expects 16" in found[0]
    assert "rank 0 sends 16 bytes to rank 1, which expects 20" in found[1]


def test_another_data_type_is_named(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_rank_has_another_type, 2, tmp_path)
    assert "rank 1 called all_reduce(Int, SUM)" in found[0]


def test_a_rank_that_does_not_come_is_named_after_the_time_limit(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_rank_does_not_come, 3, tmp_path, without=(1,))
    assert "rank 1 did not make this call within 3 s" in found[0] + found[2]


def test_a_group_that_failed_says_so_at_once(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_failed_group_stays_failed, 2, tmp_path)
    assert "this group failed before: hccl all_reduce(Float, SUM) on rank 0" in found[0]


def test_a_message_that_nobody_sends(tmp_path: Path) -> None:
    found = errors(hccl_checks.nobody_sends, 2, tmp_path, without=(1,))
    assert "hccl recv from rank 1 on rank 0: rank 1 did not send within 3 s" in found[0]


def test_a_message_of_another_size(tmp_path: Path) -> None:
    found = errors(hccl_checks.a_message_has_another_size, 2, tmp_path, without=(1,))
    assert "rank 1 sends 20 bytes, the receiving tensor has 12" in found[0]
