# SPDX-License-Identifier: Apache-2.0
"""Which communication method a step uses, and why: a pure function of constants and of what all ranks agreed on.

``select`` may be given nothing that differs between ranks: ranks that chose differently would wait for each other for
ever. ``check_start_up`` refuses, once and readably, what cannot work. ``MethodSelector`` adds a log line for each
choice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .arithmetic import ceil_div
from .capacity import Capacity, SchedulerFacts, mc2_capacity
from .comm import ALLGATHER, ALLTOALL, MC2, METHODS
from .errors import MoEConfigError, MoELimitError
from .limits import MoEFacts, Violation, hccl_buffsize_floor_mib, mc2_row_violation, mc2_violations
from .soc import Soc

AUTO = "auto"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A method's name and the reason for it, for the log and the trace: the rule, without the step's own numbers."""

    method: str
    reason: str


def select(facts: MoEFacts, capacity: Capacity, max_tokens: int, captured: bool, forced: str = AUTO) -> Choice:
    """Choose the method of a step.

    Args:
        facts: constants.
        capacity: from ``mc2_capacity``, a constant too.
        max_tokens: most tokens on any DP rank in this step, as agreed.
        captured: whether the MoE layers run inside a captured graph in this step, as agreed.
        forced: a method's name, or ``auto``. ``check_start_up`` has to have accepted it.
    """
    if forced != AUTO:
        return Choice(forced, "forced")
    if facts.ep_size == 1:
        return Choice(ALLGATHER, "experts are not distributed over ranks")
    blocked = mc2_violations(facts, any_release=not facts.newest_limits)
    rows = max(ceil_div(max_tokens, facts.tp_size), 1)
    if blocked:
        reason = f"no MC2: {blocked[0].limit} is {blocked[0].found}, {blocked[0].allowed} is supported"
    elif rows <= capacity.rows:
        return Choice(MC2, f"at most {capacity.rows} tokens per rank ({capacity.limited_by})")
    else:
        reason = f"MC2 takes {capacity.rows} tokens per rank ({capacity.limited_by})"
    if facts.soc is Soc.A2:
        return Choice(ALLGATHER, f"{reason}; A2 gathers")
    if captured:
        return Choice(ALLGATHER, f"{reason}; AllToAll cannot be captured in a graph")
    return Choice(ALLTOALL, f"{reason}; A3 exchanges")


def check_start_up(facts: MoEFacts, scheduler: SchedulerFacts, forced: str = AUTO) -> Capacity:
    """Refuse what cannot work, before anything runs; return MC2's capacity.

    Raises:
        MoEConfigError: an unknown method.
        MoELimitError: a forced method outside its limits, or an ``HCCL_BUFFSIZE`` that holds not even one token of a
            method that would be used. One message: limit, value found, what to change.
    """
    if forced != AUTO and forced not in METHODS:
        known = ", ".join((AUTO, *METHODS))
        raise MoEConfigError(f"unknown MoE communication method {forced!r}; known: {known}")
    capacity = mc2_capacity(facts, scheduler)
    if forced == MC2:
        _refuse(MC2, _forced_mc2_violations(facts, scheduler))
        needed = ceil_div(scheduler.max_num_batched_tokens, facts.tp_size)
        return _with_rows(facts, scheduler, capacity, needed)
    if forced != AUTO:
        _refuse(forced, _forced_violations(facts, scheduler, forced))
    elif not mc2_violations(facts, any_release=not facts.newest_limits):
        _check_buffsize(facts, capacity)
    return capacity


class MethodSelector:
    """``select`` with its constants bound, and one log line for each choice and reason.

    Args:
        facts: constants.
        scheduler: constants.
        forced: a method's name, or ``auto``.

    Raises:
        MoEConfigError, MoELimitError: see ``check_start_up``.
    """

    def __init__(self, facts: MoEFacts, scheduler: SchedulerFacts, forced: str = AUTO) -> None:
        self.facts = facts
        self.forced = forced
        self.capacity = check_start_up(facts, scheduler, forced)
        self._told: set[Choice] = set()
        self._choices: dict[tuple[int, bool], Choice] = {}

    def choose(self, max_tokens: int, captured: bool) -> Choice:
        """The choice for one step; see ``select``."""
        key = (max_tokens, captured)
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = select(self.facts, self.capacity, max_tokens, captured, self.forced)
            if choice not in self._told:
                self._told.add(choice)
                logger.info("MoE communication: %s for %d tokens (%s)", choice.method, max_tokens, choice.reason)
        return choice


def _forced_mc2_violations(facts: MoEFacts, scheduler: SchedulerFacts) -> list[Violation]:
    rows = ceil_div(scheduler.max_num_batched_tokens, facts.tp_size)
    row_violation = mc2_row_violation(facts, rows)
    found = list(mc2_violations(facts, any_release=False))
    return found if row_violation is None else [*found, row_violation]


def _forced_violations(facts: MoEFacts, scheduler: SchedulerFacts, method: str) -> list[Violation]:
    found = []
    if facts.ep_size == 1 and method == ALLTOALL:
        found.append(
            Violation("expert parallel size", "1", "at least 2", "enable expert parallelism over more than one rank")
        )
    if scheduler.max_captured_tokens and not METHODS[method].capturable:
        found.append(
            Violation(
                "largest captured graph that contains MoE layers",
                f"{scheduler.max_captured_tokens} tokens",
                "none",
                "the method reads sizes from the device and cannot be captured; run eagerly or do not force it",
            )
        )
    return found


def _refuse(method: str, violations: list[Violation]) -> None:
    if violations:
        details = "; ".join(str(violation) for violation in violations)
        raise MoELimitError(f"the MoE communication method {method} was forced, but {details}")


def _with_rows(facts: MoEFacts, scheduler: SchedulerFacts, capacity: Capacity, rows: int) -> Capacity:
    """Capacity of a forced MC2, which has to take every step, not only decoding ones."""
    everything = SchedulerFacts(scheduler.max_num_batched_tokens, scheduler.max_num_batched_tokens)
    needed = mc2_capacity(facts, everything)
    if needed.rows < rows:
        found = facts.hccl_buffsize_mib
        window = "HCCL's default window" if found is None else f"HCCL_BUFFSIZE={found}"
        raise MoELimitError(
            f"the MoE communication method {MC2} was forced for up to {rows} tokens per rank, but {window} holds "
            f"{needed.rows}: set HCCL_BUFFSIZE={needed.full_floor_mib} (MiB) on all ranks or lower "
            "--max-num-batched-tokens"
        )
    return needed


def _check_buffsize(facts: MoEFacts, capacity: Capacity) -> None:
    if facts.hccl_buffsize_mib is not None and capacity.rows == 0:
        raise MoELimitError(
            f"HCCL_BUFFSIZE={facts.hccl_buffsize_mib} does not hold a single token of MC2 with EP {facts.ep_size}, "
            f"{facts.num_experts} experts and hidden size {facts.hidden_size} on {facts.soc.value}: set at least "
            f"HCCL_BUFFSIZE={hccl_buffsize_floor_mib(facts, 1)} (MiB) on all ranks, {capacity.full_floor_mib} for a full "
            "decode step or captured graph, or unset it"
        )
