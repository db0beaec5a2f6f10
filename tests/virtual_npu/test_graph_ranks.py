# SPDX-License-Identifier: Apache-2.0
"""Graphs with collectives in them, over real processes."""

from pathlib import Path

import pytest

from . import graph_checks
from .launch import python, ranks

pytestmark = pytest.mark.usefixtures("npu")


def test_collectives_run_again_at_every_replay(tmp_path: Path) -> None:
    for rank, answer in enumerate(ranks(graph_checks.collectives, 2, tmp_path, seconds=100)):
        assert answer is not None, f"rank {rank} died"
        assert "value" in answer, f"rank {rank}: {answer['trace']}"
        assert set(answer["value"]) == {"1", "2"}


def test_dispatch_and_combine_run_again_at_every_replay(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from tests.virtual_npu import graph_checks\n"
        "from tests.virtual_npu.launch import ranks\n"
        f"answers = ranks(graph_checks.dispatch_and_combine, 2, Path({str(tmp_path)!r}), seconds=100)\n"
        "assert all(answer and 'value' in answer for answer in answers), answers\n"
        "print('replayed', [answer['value']['active'] for answer in answers])\n"
    )
    found = python(
        f"if __name__ == '__main__':\n{''.join('    ' + line for line in code.splitlines(keepends=True))}",
        "--soc",
        "A3",
        "--devices",
        "2",
    )
    assert "replayed [[4, 1], [4, 2]]" in found.stdout, found.stderr
