# SPDX-License-Identifier: Apache-2.0
"""Which tests may run at the same time, for pytest-xdist. What tests share does not belong here, but beside them."""

from __future__ import annotations

from typing import Any

import pytest

ENGINES = "tests/serve/"
"""One engine is several processes: two of them at once only make each other late on a small machine."""

BESIDE_ENGINES = ("config_refusals", "forms", "front_door", "graph_config", "refusals", "weights")
"""Files of that folder whose tests have one process, or end before they have more: the other tests leave time for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines come first: they take longest. What runs beside them comes last of the same folder."""
    items.sort(key=lambda item: (not item.nodeid.startswith(ENGINES), _beside(item.nodeid)))


def _beside(nodeid: str) -> bool:
    file = nodeid.partition("::")[0]
    return file.removeprefix(f"{ENGINES}test_").removesuffix(".py") in BESIDE_ENGINES


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Engines of several processes run one after the other, in one process; so do the tests of each other file.

    xdist's own groups, which are marks, are without effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class EnginesAndFiles(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            engine = nodeid.startswith(ENGINES) and not _beside(nodeid)
            return ENGINES if engine else nodeid.partition("::")[0]

    return EnginesAndFiles(config, log)
