# SPDX-License-Identifier: Apache-2.0
"""The choice of method: every rule of the table, properties over all inputs, and the refusals at start-up."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.moe.arithmetic import even_parts
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts, mc2_capacity
from vllm_ascend_patch.core.moe.comm import METHODS, method_class
from vllm_ascend_patch.core.moe.cost import estimate
from vllm_ascend_patch.core.moe.errors import MoEConfigError, MoELimitError
from vllm_ascend_patch.core.moe.limits import MoEFacts, hccl_buffsize_floor_mib, mc2_row_violation, mc2_violations
from vllm_ascend_patch.core.moe.selection import MethodSelector, check_start_up, regimes, select
from vllm_ascend_patch.core.moe.soc import Soc

A3 = MoEFacts(
    soc=Soc.A3,
    operator_version=2,
    tp_size=2,
    dp_size=8,
    ep_size=16,
    num_experts=128,
    hidden_size=2048,
    top_k=8,
    hccl_buffsize_mib=1024,
)
A2 = replace(A3, soc=Soc.A2)
A2_HOSTS = replace(A2, tp_size=1, dp_size=16, num_nodes=2, ranks_per_host=(8, 8))
SCHEDULER = SchedulerFacts(max_num_batched_tokens=8192, max_num_seqs=256)


@pytest.mark.parametrize(
    ("facts", "tokens", "captured", "method", "reason"),
    [
        (replace(A3, ep_size=1), 1, False, "allgather", "not distributed"),
        (A3, 1, False, "mc2", "cheapest of mc2 40 us + "),
        (A3, 256, False, "mc2", "cheapest of mc2"),
        (A3, 256, True, "mc2", "AllToAll cannot be captured"),
        (A3, 257, False, "alltoall", "MC2 takes 128 tokens per rank (256 tokens of a full decode step"),
        (A3, 257, True, "allgather", "cannot be captured"),
        (A3, 8192, False, "alltoall", "cheapest of alltoall 170 us + "),
        (A2, 256, False, "mc2", "cheapest of mc2"),
        (A2, 8192, False, "alltoall", "MC2 takes 128 tokens per rank"),
        (A2, 8192, True, "allgather", "cannot be captured"),
        (replace(A2, ep_size=8), 1, False, "allgather", "expert parallel size on A2 (operators v2) is 8"),
        (replace(A2, ep_size=8, newest_limits=True), 1, False, "mc2", "cheapest of mc2"),
        (replace(A2, num_experts=512), 1, False, "allgather", "experts per rank on A2 (operators v2) is 32"),
        (replace(A2, hidden_size=8192), 1, False, "allgather", "hidden size"),
        (replace(A3, hidden_size=512), 8192, False, "alltoall", "no MC2: hidden size"),
        (replace(A3, hidden_size=512), 1, True, "allgather", "cannot be captured"),
        (replace(A3, dtype="float32"), 8192, False, "alltoall", "dtype"),
        (replace(A3, top_k=17), 8192, False, "alltoall", "top-k"),
        (replace(A3, num_experts=130), 8192, False, "alltoall", "a multiple of the expert parallel size"),
        (A3, 0, False, "mc2", "cheapest of mc2"),
        # A window below that of a full decode step: MC2 takes what it holds.
        (replace(A3, hccl_buffsize_mib=100), 166, False, "mc2", "cheapest of mc2"),
        (
            replace(A3, hccl_buffsize_mib=100),
            168,
            False,
            "alltoall",
            "MC2 takes 83 tokens per rank (HCCL_BUFFSIZE=100; HCCL_BUFFSIZE=153 would",
        ),
        # Four ranks and eight experts a token: gathering moves little more than the floor, and launches less.
        (replace(A3, tp_size=1, dp_size=4, ep_size=4), 1024, False, "allgather", "cheapest of allgather"),
        # All ranks have the tokens already: nothing has to be gathered.
        (replace(A3, tp_size=16, dp_size=1), 4096, False, "allgather", "cheapest of allgather"),
        # A2 gathers within eight ranks, and exchanges where a second host makes bytes dear.
        (replace(A2, tp_size=1, dp_size=8, ep_size=8), 256, False, "allgather", "expert parallel size"),
        (replace(A2, tp_size=1, dp_size=16, num_nodes=2), 512, False, "alltoall", "1.211 us (49.9 KiB)"),
        (replace(A2, tp_size=1, dp_size=16, num_nodes=2), 512, False, "alltoall", "not in two levels"),
        # Where it is known who shares a host, a token crosses to the other host once, not three times.
        (A2_HOSTS, 512, False, "hierarchical", "hierarchical 242 us + 0.572 us (54.6 KiB)"),
        (A2_HOSTS, 228, False, "mc2", "alltoall 170 us + 1.211 us (49.9 KiB)"),
        (A2_HOSTS, 512, True, "allgather", "cannot be captured"),
        (replace(A2_HOSTS, ranks_per_host=(11, 5)), 512, False, "hierarchical", "cheapest of hierarchical"),
        # Hosts of A3 that RoCE alone joins, by the two numbers that replace the table.
        (replace(A2_HOSTS, soc=Soc.A3, links=(196, 25)), 8192, False, "hierarchical", "242 us + 0.572 us (54.6 KiB)"),
        (replace(A2_HOSTS, links=(196, 196)), 8192, False, "alltoall", "cheapest of alltoall"),
        # A bus that is as fast between hosts as inside leaves nothing to save.
        (replace(A2_HOSTS, soc=Soc.A3), 8192, False, "alltoall", "hierarchical 242 us + "),
    ],
)
def test_rule(facts: MoEFacts, tokens: int, captured: bool, method: str, reason: str) -> None:
    choice = select(facts, mc2_capacity(facts, SCHEDULER), tokens, captured)
    assert choice.method == method
    assert reason in choice.reason


facts_strategy = st.builds(
    MoEFacts,
    soc=st.sampled_from(list(Soc)),
    operator_version=st.sampled_from([1, 2]),
    tp_size=st.sampled_from([1, 2, 4, 8]),
    dp_size=st.sampled_from([1, 2, 4, 32]),
    ep_size=st.sampled_from([1, 2, 4, 8, 9, 16, 32, 64, 288]),
    num_experts=st.sampled_from([8, 60, 64, 128, 160, 256, 288, 384, 512, 2048]),
    hidden_size=st.sampled_from([64, 1000, 1024, 2048, 4096, 5120, 7168, 8192, 12288]),
    top_k=st.integers(1, 20),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    num_nodes=st.sampled_from([1, 2, 3, 4, 16]),
    hccl_buffsize_mib=st.none() | st.integers(1, 8192),
    newest_limits=st.booleans(),
    links=st.none() | st.tuples(st.floats(1, 1000), st.floats(1, 1000)),
)


def _on_hosts(facts: MoEFacts, hosts: int) -> MoEFacts:
    ranks = facts.tp_size * facts.dp_size
    parts = even_parts(ranks, min(hosts, ranks))
    return replace(facts, ep_size=ranks, num_nodes=hosts, ranks_per_host=parts if len(parts) > 1 else ())


deployments = st.builds(_on_hosts, facts_strategy, st.sampled_from([1, 2, 3, 8]))
scheduler_strategy = st.builds(
    SchedulerFacts,
    max_num_batched_tokens=st.integers(1, 65536),
    max_num_seqs=st.integers(1, 2048),
    tokens_per_decode=st.integers(1, 5),
    max_captured_tokens=st.integers(0, 2048),
)


@given(
    facts=facts_strategy | deployments,
    scheduler=scheduler_strategy,
    tokens=st.lists(st.integers(0, 65536), min_size=1, max_size=8),
    captured=st.booleans(),
    forced=st.sampled_from(["auto", *METHODS]),
)
def test_choice_is_the_same_on_all_ranks_and_never_breaks_a_limit(
    facts: MoEFacts, scheduler: SchedulerFacts, tokens: list[int], captured: bool, forced: str
) -> None:
    captured = captured and scheduler.max_captured_tokens > 0
    try:
        capacity = check_start_up(facts, scheduler, forced)
    except MoELimitError:
        return
    agreed = min(max(tokens), scheduler.max_num_batched_tokens)
    # Each rank computes on its own, from equal but distinct values.
    choices = {
        select(replace(facts), check_start_up(replace(facts), replace(scheduler), forced), agreed, captured, forced)
        for _ in tokens
    }
    assert len(choices) == 1
    choice = choices.pop()
    assert choice.reason
    assert METHODS[choice.method].capturable or not captured
    if facts.ep_size == 1:
        assert choice.method == "allgather"
    if choice.method == "hierarchical":
        assert len(facts.ranks_per_host) > 1
    if choice.method == "mc2":
        rows = max(-(-agreed // facts.tp_size), 1)
        assert mc2_violations(facts, any_release=forced == "auto" and not facts.newest_limits) == ()
        assert mc2_row_violation(facts, rows) is None
        assert rows <= capacity.rows
        assert hccl_buffsize_floor_mib(facts, rows) <= (facts.hccl_buffsize_mib or 200)


@pytest.mark.parametrize(
    ("facts", "scheduler", "forced", "message"),
    [
        (
            A3,
            SCHEDULER,
            "mc3",
            r"unknown MoE communication method 'mc3'; known: auto, allgather, mc2, alltoall, hierarchical",
        ),
        (replace(A3, ep_size=1), SCHEDULER, "mc2", r"mc2 was forced, but expert parallel size .* is 1, at least 2"),
        (replace(A3, ep_size=1), SCHEDULER, "alltoall", r"alltoall was forced, but expert parallel size is 1"),
        (A3, SCHEDULER, "hierarchical", r"forced, but number of hosts whose ranks follow each other is 1, at least 2"),
        (
            replace(A3, num_nodes=2),
            SCHEDULER,
            "hierarchical",
            r"ranks follow each other is 0, at least 2 is supported: use more than one host, and start the ranks host by",
        ),
        (replace(A3, ep_size=1), SCHEDULER, "hierarchical", r"expert parallel size is 1, at least 2 is supported"),
        (
            A2_HOSTS,
            replace(SCHEDULER, max_captured_tokens=64),
            "hierarchical",
            r"largest captured graph .* cannot be captured",
        ),
        (A3, SCHEDULER, "mc2", r"is 4096, 1\.\.512 is supported: at most 1024 tokens per DP rank"),
        (replace(A3, top_k=17), SCHEDULER, "mc2", r"top-k on A3 .* is 17, at most 16.*; .* is 4096, 1\.\.512"),
        (A3, replace(SCHEDULER, max_captured_tokens=64), "alltoall", r"largest captured graph .* cannot be captured"),
        (
            replace(A3, hccl_buffsize_mib=1),
            SCHEDULER,
            "auto",
            r"HCCL_BUFFSIZE=1 does not hold a single token of MC2 .* at least HCCL_BUFFSIZE=2 .*, 153 for a full decode",
        ),
        (
            replace(A3, hccl_buffsize_mib=100),
            SchedulerFacts(512, 64),
            "mc2",
            r"up to 256 tokens per rank, but HCCL_BUFFSIZE=100 holds 83: set HCCL_BUFFSIZE=306 ",
        ),
        (
            replace(A3, hccl_buffsize_mib=None),
            SchedulerFacts(1024, 64),
            "mc2",
            r"up to 512 tokens per rank, but HCCL's default window holds 167: set HCCL_BUFFSIZE=612 ",
        ),
    ],
)
def test_start_up_refuses_in_one_readable_message(
    facts: MoEFacts, scheduler: SchedulerFacts, forced: str, message: str
) -> None:
    with pytest.raises(MoEConfigError, match=message) as raised:
        check_start_up(facts, scheduler, forced)
    assert "\n" not in str(raised.value)


def test_forced_method_is_used_for_every_step_it_was_accepted_for() -> None:
    facts = replace(A3, hccl_buffsize_mib=4096, ranks_per_host=(8, 8))
    for forced in METHODS:
        selector = MethodSelector(facts, SchedulerFacts(1024, 64), forced)
        assert {selector.choose(tokens, captured=False).method for tokens in (0, 1, 1024)} == {forced}


def test_the_table_names_every_method_as_it_names_itself_and_the_variable_takes_each() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    variable = envs.VARIABLES["VLLM_ASCEND_PATCH_MOE_COMM"]
    for name in METHODS:
        assert method_class(name).name == name
        assert variable.read({variable.name: name}) == name


def test_a_method_added_to_the_table_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "fourth", METHODS["alltoall"])
    assert MethodSelector(A3, SCHEDULER, "fourth").choose(8, captured=False).method == "fourth"
    with pytest.raises(MoELimitError, match="fourth was forced, but largest captured graph"):
        MethodSelector(A3, replace(SCHEDULER, max_captured_tokens=8), "fourth")


def test_one_method_for_one_reason_is_one_reason_whatever_the_tokens() -> None:
    """So that a reason can be counted and logged once."""
    facts = replace(A3, tp_size=1, dp_size=4, ep_size=4)
    capacity = mc2_capacity(facts, SCHEDULER)
    choices = {select(facts, capacity, tokens, captured=False) for tokens in range(8193)}
    assert len(choices) == len({choice.method for choice in choices}) == 3


@given(facts=facts_strategy, tokens=st.integers(0, 65536), nodes=st.tuples(st.integers(2, 16), st.integers(2, 16)))
def test_hosts_with_unequal_parts_of_the_ranks_estimate_alike(
    facts: MoEFacts, tokens: int, nodes: tuple[int, int]
) -> None:
    """24 ranks on hosts of 16 and 8: the first counts two hosts, the second three."""
    facts = replace(facts, ep_size=facts.tp_size * facts.dp_size)
    for method in METHODS:
        first, second = (estimate(replace(facts, num_nodes=count), method, tokens) for count in nodes)
        assert first == second


@given(facts=deployments, scheduler=scheduler_strategy, captured=st.booleans(), data=st.data())
def test_regimes_say_what_select_says(
    facts: MoEFacts, scheduler: SchedulerFacts, captured: bool, data: st.DataObject
) -> None:
    try:
        capacity = check_start_up(facts, scheduler)
    except MoELimitError:
        return
    most = data.draw(st.integers(1, 65536))
    found = regimes(facts, capacity, most, captured)
    assert found[0].first == 1
    assert found[-1].last == most
    assert all(before.last + 1 == after.first for before, after in pairwise(found))
    for regime in found:
        inside = data.draw(st.integers(regime.first, regime.last))
        choice = select(facts, capacity, inside, captured)
        costs = {m: estimate(facts, m, inside).microseconds for m in (choice.method, regime.choice.method)}
        # Up to the rounding of tokens to TP: then both cost as good as the same.
        assert costs[regime.choice.method] <= 1.01 * costs[choice.method]
        assert METHODS[regime.choice.method].capturable or not captured


@given(facts=deployments, scheduler=scheduler_strategy, tokens=st.integers(1, 65536))
def test_auto_is_the_cheapest_method_that_may_run(facts: MoEFacts, scheduler: SchedulerFacts, tokens: int) -> None:
    try:
        capacity = check_start_up(facts, scheduler)
    except MoELimitError:
        return
    chosen = select(facts, capacity, tokens, captured=False).method
    allowed = ["allgather"]
    if facts.ep_size > 1:
        allowed.append("alltoall")
        allowed += ["hierarchical"] if len(facts.ranks_per_host) > 1 else []
        fits = -(-tokens // facts.tp_size) <= capacity.rows
        allowed += ["mc2"] if fits and not mc2_violations(facts, any_release=not facts.newest_limits) else []
    assert chosen in allowed
    cheapest = min(estimate(facts, method, tokens).microseconds for method in allowed)
    assert estimate(facts, chosen, tokens).microseconds == cheapest


def test_each_choice_and_reason_is_logged_once_however_often_steps_alternate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    selector = MethodSelector(A3, SCHEDULER)
    with caplog.at_level(logging.INFO):
        for tokens in range(16, 8192, 16):
            selector.choose(tokens, captured=False)
            selector.choose(16, captured=True)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[2] for line in lines] == ["mc2", "mc2", "alltoall"]
    assert all("cheapest of" in line for line in lines)


def test_hosts_whose_ranks_are_not_all_there_are_refused() -> None:
    with pytest.raises(MoEConfigError, match=r"hosts with \(8, 4\) ranks do not make 16 expert parallel ranks"):
        replace(A3, ranks_per_host=(8, 4))
