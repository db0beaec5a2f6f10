# SPDX-License-Identifier: Apache-2.0
"""Which communication method a step uses, and why: a pure function of constants and of what all ranks agreed on.

``select`` may be given nothing that differs between ranks: ranks that chose differently would wait for each other for
ever. ``check_start_up`` refuses, once and readably, what cannot work. ``MethodSelector`` adds a log line for each
choice.

Of the methods that the limits allow, the cheapest by ``cost`` is chosen. A reason names their figures; it does not depend on
the token count, so that one method for one reason is one reason in the log.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .arithmetic import ceil_div
from .capacity import Capacity, SchedulerFacts, mc2_capacity
from .comm import ALLGATHER, ALLTOALL, HIERARCHICAL, MC2, METHODS
from .cost import describe, estimate
from .errors import MoEConfigError, MoELimitError
from .limits import MoEFacts, Violation, hccl_buffsize_floor_mib, mc2_row_violation, mc2_violations

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
    allowed, excluded = _allowed(facts, capacity, max_tokens, captured)
    ranked = sorted(allowed, key=lambda method: estimate(facts, method, max_tokens).microseconds)
    figures = ", ".join(describe(facts, method) for method in (ranked[0], *sorted(ranked[1:])))
    return Choice(ranked[0], "; ".join([f"cheapest of {figures}", *excluded]))


@dataclass(frozen=True)
class Regime:
    """A range of token counts with one choice: ``first`` to ``last`` tokens per DP rank."""

    first: int
    last: int
    choice: Choice


def regimes(facts: MoEFacts, capacity: Capacity, most: int, captured: bool, forced: str = AUTO) -> list[Regime]:
    """What ``select`` answers from 1 to ``most`` tokens.

    MC2's capacity apart, costs grow with tokens along straight lines (but for the rounding to TP), so that the tokens for
    which one method is cheapest are one range, and a range whose ends agree is of one choice.
    """

    def choice(tokens: int) -> Choice:
        return select(facts, capacity, tokens, captured, forced)

    def split(first: int, last: int) -> list[Regime]:
        if choice(first) == choice(last):
            return [Regime(first, last, choice(first))]
        if last - first == 1:
            return [Regime(first, first, choice(first)), Regime(last, last, choice(last))]
        middle = (first + last) // 2
        return split(first, middle) + split(middle, last)

    within = min(capacity.tokens, most)
    parts = [(1, within), (within + 1, most)] if within else [(1, most)]
    found: list[Regime] = []
    for regime in (regime for first, last in parts if first <= last for regime in split(first, last)):
        if found and found[-1].choice == regime.choice:
            found[-1] = Regime(found[-1].first, regime.last, regime.choice)
        else:
            found.append(Regime(max(regime.first, found[-1].last + 1 if found else 1), regime.last, regime.choice))
    return found


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


def _allowed(facts: MoEFacts, capacity: Capacity, max_tokens: int, captured: bool) -> tuple[list[str], list[str]]:
    """The methods that may run the step, and why the others may not."""
    allowed, excluded = [ALLGATHER], []
    blocked = mc2_violations(facts, any_release=not facts.newest_limits)
    if blocked:
        excluded.append(f"no MC2: {blocked[0].limit} is {blocked[0].found}, {blocked[0].allowed} is supported")
    elif max(ceil_div(max_tokens, facts.tp_size), 1) <= capacity.rows:
        allowed.append(MC2)
    else:
        excluded.append(f"MC2 takes {capacity.rows} tokens per rank ({capacity.limited_by})")
    if captured:
        excluded.append("AllToAll cannot be captured in a graph")
    else:
        allowed.append(ALLTOALL)
        if len(facts.ranks_per_host) > 1:
            allowed.append(HIERARCHICAL)
        elif facts.num_nodes > 1:
            excluded.append("not in two levels: no hosts whose ranks follow each other")
    return allowed, excluded


def _forced_mc2_violations(facts: MoEFacts, scheduler: SchedulerFacts) -> list[Violation]:
    rows = ceil_div(scheduler.max_num_batched_tokens, facts.tp_size)
    row_violation = mc2_row_violation(facts, rows)
    found = list(mc2_violations(facts, any_release=False))
    return found if row_violation is None else [*found, row_violation]


def _forced_violations(facts: MoEFacts, scheduler: SchedulerFacts, method: str) -> list[Violation]:
    found = []
    if method == HIERARCHICAL and facts.ep_size > 1 and len(facts.ranks_per_host) < 2:
        found.append(
            Violation(
                "number of hosts whose ranks follow each other",
                "0" if facts.num_nodes > 1 else "1",
                "at least 2",
                "use more than one host, and start the ranks host by host",
            )
        )
    if facts.ep_size == 1 and method in (ALLTOALL, HIERARCHICAL):
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
