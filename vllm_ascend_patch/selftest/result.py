# SPDX-License-Identifier: Apache-2.0
"""One line of the self-test's report, how a check becomes one, and what is allowed. No torch here."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

#: Largest error allowed, relative to the largest entry of the reference: a few roundings of the dtype.
TOLERANCE = {"bfloat16": 0.02, "float16": 0.004, "float32": 1e-4}

ALLOWED = (
    "Allowed, of the largest entry: "
    + ", ".join(f"{dtype} {limit:g}" for dtype, limit in TOLERANCE.items())
    + "; int8 one step; other integers exact."
)


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        part: the part of the self-test that it belongs to.
        name: what was checked, an operator's name where it is one.
        ok: whether it holds.
        found: figures if it holds, what is wrong if not.
    """

    part: str
    name: str
    ok: bool
    found: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def attempt(part: str, name: str, check: Callable[[], str]) -> Result:
    """Run a check, which returns its figures, or raises what is wrong."""
    try:
        return Result(part, name, True, check())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Result(part, name, False, f"{type(error).__name__}: {error} ({where.name}:{where.lineno})")


def require(holds: bool, wrong: str) -> None:
    """Raise AssertionError with what is ``wrong`` unless it ``holds``; ``assert`` is gone under ``python -O``."""
    if not holds:
        raise AssertionError(wrong)
