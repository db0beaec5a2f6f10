# SPDX-License-Identifier: Apache-2.0
"""The result file: how many tests of each function pass, and each one that does not, with the reason.

A run of a file is kept as follows, and the next run is compared with it::

    {"passed": {"test_a": 12}, "not applicable": {reason: {"test_b": ["[cuda]"]}}, "failed": {reason: {...}}, …}

``["all of 12"]`` stands for every test of a function. Runs nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from .reasons import UNEXPLAINED, reason
from .runner import Outcome

_NOT_PASSED = ("not applicable", "failed")
_ALL = "all of "


def summarise(file: str, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The record of one run of a file."""
    passed: Counter[str] = Counter()
    other: dict[str, dict[str, dict[str, list[str]]]] = {kind: {} for kind in _NOT_PASSED}
    tests: Counter[str] = Counter()
    for outcome in outcomes:
        function, case = _split(outcome.test)
        tests[function] += 1
        if outcome.state == "passed":
            passed[function] += 1
        else:
            why = reason(file, outcome)
            other[why.kind].setdefault(why.words, {}).setdefault(function, []).append(case)
    for reasons in other.values():
        for functions in reasons.values():
            for function, cases in functions.items():
                if len(cases) == tests[function] > 1:
                    cases[:] = [f"{_ALL}{len(cases)}"]
    return {"passed": dict(sorted(passed.items())), **other}


def worse(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What passed in ``known`` and does not ``now``: tests by name, or how many of a function there are fewer."""
    before, after = _not_passed(known), _not_passed(now)
    found = []
    for function, count in known["passed"].items():
        fresh = sorted(after[function] - before[function])
        if fresh:
            found += [f"{function}{case}" if not case.startswith(_ALL) else f"{function}, {case}" for case in fresh]
        elif now["passed"].get(function, 0) < count:
            found.append(f"{function}: {now['passed'].get(function, 0)} pass, {count} did")
    return found


def unexplained(record: dict[str, Any]) -> dict[str, list[str]]:
    """Tests that did not pass and have no reason in the table."""
    found: dict[str, list[str]] = {}
    for kind in _NOT_PASSED:
        for function, cases in record[kind].get(UNEXPLAINED, {}).items():
            found[function] = found.get(function, []) + cases
    return found


def counts(record: dict[str, Any]) -> tuple[int, int, int]:
    """Tests that passed, that failed and that do not apply."""
    passed = sum(record["passed"].values())
    return passed, _number(record["failed"]), _number(record["not applicable"])


def _number(reasons: dict[str, dict[str, list[str]]]) -> int:
    return sum(number(cases) for functions in reasons.values() for cases in functions.values())


def number(cases: list[str]) -> int:
    """How many tests of a function these are."""
    return int(cases[0].removeprefix(_ALL)) if cases[0].startswith(_ALL) else len(cases)


def _not_passed(record: dict[str, Any]) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for kind in _NOT_PASSED:
        for functions in record[kind].values():
            for function, cases in functions.items():
                found[function].update(cases)
    return found


def _split(test: str) -> tuple[str, str]:
    """``test_a[x]`` as ``test_a`` and ``[x]``; a class stays with its function."""
    function, bracket, rest = test.partition("[")
    return function, bracket + rest
