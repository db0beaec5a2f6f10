# SPDX-License-Identifier: Apache-2.0
"""Which tests may run at the same time, for pytest-xdist. What tests share does not belong here, but beside them."""

from __future__ import annotations

from typing import Any

import pytest

ENGINES = "tests/serve/"
"""One engine is several processes: two of them at once only make each other late on a small machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines come first: they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(ENGINES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All engines run one after the other in one process; so do the tests of each other file.

    xdist's own groups, which are marks, are without effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class EnginesAndFiles(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return ENGINES if nodeid.startswith(ENGINES) else nodeid.partition("::")[0]

    return EnginesAndFiles(config, log)
