# SPDX-License-Identifier: Apache-2.0
"""torch_npu's profiler on virtual NPUs: sessions begin and end, and what runs on the host is recorded."""

from __future__ import annotations

from pathlib import Path

import torch
import torch_npu.profiler


def record(folder: Path) -> Path:
    """The file of operators that one recording of a matmul leaves."""
    handler = torch_npu.profiler.tensorboard_trace_handler(str(folder), analyse_flag=False)
    with torch_npu.profiler.profile(on_trace_ready=handler) as profile:
        x = torch.ones(4, 4, device="npu")
        (x @ x).cpu()
    return Path(profile.prof_if.prof_path) / "FRAMEWORK" / "torch.op_range"


def test_each_recording_holds_the_operators_that_ran(tmp_path: Path) -> None:
    first, second = record(tmp_path), record(tmp_path)
    assert first != second
    for operators in (first, second):
        assert b"aten::matmul" in operators.read_bytes()
