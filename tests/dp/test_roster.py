# SPDX-License-Identifier: Apache-2.0
"""A broken exchange of a group without a watchdog names the rank behind it. Real processes, stores and gloo groups."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.support.environment import free_port
from tests.support.processes import result_of, under_virtual_npu
from tests.support.ranks import run_ranks
from vllm_ascend_patch.core.dp.roster import Member, enrol, explain
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE

GLOO = "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [{}]:21022"


def _exchange_twice(group: dist.ProcessGroupGloo) -> None:
    """A rank need not notice at once that another has gone that had nothing to send."""
    for _ in range(2):
        group.allreduce([torch.ones(1)]).wait()


def _lose(rank: int, size: int, lost: int, port: int) -> str:
    """A group as vLLM's engines make it; ``lost`` ends after an exchange, the others tell what they make of the next."""
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0, timeout=timedelta(seconds=30))
    enrol(store, Member.this_process(rank))
    group = dist.ProcessGroupGloo(dist.PrefixStore("group", store), rank, size, timedelta(seconds=30))
    group.allreduce([torch.ones(1)]).wait()
    if rank == lost:
        os._exit(0)
    with pytest.raises(RuntimeError) as broken:
        _exchange_twice(group)
    return str(explain(broken.value, store, rank, size))


def _told_by(survivor: int, size: int, lost: int, port: int) -> str:
    outcome = run_ranks(_lose, size, lost, port, group=None, together=True)[survivor]
    assert outcome.error is None, outcome.trace
    return str(outcome.value)


@pytest.mark.parametrize("lost", [1, 2])
def test_the_survivors_name_the_rank_whose_process_is_gone(lost: int) -> None:
    told = _told_by(0, 3, lost, free_port())
    assert told.startswith("data-parallel rank 0: the engines' exchange of who has work broke (")
    assert re.search(rf"Behind it: rank {lost} \(pid \d+ on {os.uname().nodename}\), its process is gone\. Look", told)


def test_without_its_store_the_rank_that_had_it_is_named() -> None:
    port = free_port()
    told = _told_by(1, 2, 0, port)
    assert (
        f"Behind it: rank 0, whose process holds the group's store at 127.0.0.1:{port}, which does not answer" in told
    )


def _store_of(*members: Member) -> dist.Store:
    store = dist.HashStore()
    for member in members:
        enrol(store, member)
    return store


def _elsewhere(rank: int, host: str, address: str) -> Member:
    return Member(rank, host, 100 + rank, "pid:[1]", (address,))


def test_ranks_of_another_host_are_named_by_the_address_that_gloo_lost() -> None:
    ranks = [_elsewhere(1, "b", "10.0.0.2"), _elsewhere(2, "b", "10.0.0.2"), _elsewhere(3, "c", "10.0.0.3")]
    store = _store_of(Member.this_process(0), *ranks)
    told = str(explain(RuntimeError(GLOO.format("10.0.0.3")), store, 0, 4))
    assert "Behind it: rank 3 (pid 103 on c). Look" in told
    told = str(explain(RuntimeError(GLOO.format("10.0.0.2")), store, 0, 4))
    assert "Behind it: rank 1 (pid 101 on b) or rank 2 (pid 102 on b). Look" in told


def test_what_is_not_known_is_not_claimed() -> None:
    store = _store_of(Member.this_process(0), _elsewhere(1, "b", "10.0.0.2"))
    told = str(explain(RuntimeError("Timed out waiting 1800000ms for recv operation"), store, 0, 3))
    assert "Behind it: rank 1 (pid 101 on b) or rank 2. Look" in told
    told = str(explain(RuntimeError(GLOO.format("10.0.0.9")), None, 1, 2))
    assert "Connection closed by peer [10.0.0.9]:21022). Behind it: rank 0. Look" in told


def test_a_members_addresses_are_those_that_a_connection_to_it_has() -> None:
    assert "127.0.0.1" in Member.this_process(0).addresses


def test_vllms_engines_raise_it_from_both_of_their_exchanges_and_its_command_ends_with_the_watchdogs_code() -> None:
    done = under_virtual_npu("-m", "tests.dp.engine_exchange", seconds=120)
    assert done.returncode == EXIT_CODE
    assert "EngineCore_DP1 ended with exit code 3: this server ends with code 75" in done.stdout + (done.stderr or "")
    told = result_of(done)
    assert sorted(told) == ["has_unfinished_dp", "sync_dp_state"]
    for message in told.values():
        assert re.match(r"RankMissingError: data-parallel rank 0: .* Behind it: rank 1 \(pid \d+ on .*is gone", message)
