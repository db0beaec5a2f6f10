# SPDX-License-Identifier: Apache-2.0
"""Which tests may run at the same time, for pytest-xdist. What tests share does not belong here, but beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

ENGINES = Path(__file__).parent / "serve"
"""One engine is several processes: two of them at once only make each other late on a small machine."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All engines are one group, which comes first since it takes longest; each other file is one. A group's tests run one
    after the other, in one process."""
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: not item.path.is_relative_to(ENGINES))
        for item in items:
            group = "engines" if item.path.is_relative_to(ENGINES) else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
