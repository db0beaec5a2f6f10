# SPDX-License-Identifier: Apache-2.0
"""Streams, events, pinned copies and graphs of one NPU: what the package stands on besides operators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch_npu

from .result import Result, attempt, require

PART = "device"
ELEMENTS = 1 << 20


def check(device: torch.device) -> Iterator[Result]:
    """One result per facility."""
    with torch.inference_mode():
        for name, run in (
            ("streams and events", streams),
            ("pinned copies", pinned_copies),
            ("graph capture and replay", graph),
            ("graph update", graph_update),
        ):
            yield attempt(PART, name, partial(run, device))


def streams(device: torch.device) -> str:
    """A chain over two streams: each waits for the other's event."""
    side, main = torch_npu.npu.Stream(device=device), torch_npu.npu.current_stream(device)
    x = torch.zeros(ELEMENTS, device=device)
    rounds = 20
    for _ in range(rounds):
        side.wait_event(main.record_event())
        with torch_npu.npu.stream(side):
            x.add_(1.0)
        main.wait_stream(side)
        x.mul_(2.0)
    event = main.record_event()
    event.synchronize()
    require(event.query(), "an event that was waited for is not complete")
    expected = float(2 ** (rounds + 1) - 2)
    require(bool((x == expected).all()), f"{x[0].item()} instead of {expected}")
    return f"{2 * rounds} operators in order over two streams"


def pinned_copies(device: torch.device) -> str:
    """There and back on a side stream without blocking; the host waits for one event."""
    side = torch_npu.npu.Stream(device=device)
    there = torch.arange(ELEMENTS, dtype=torch.int32).pin_memory()
    back = torch.zeros(ELEMENTS, dtype=torch.int32).pin_memory()
    require(there.is_pinned(), "pin_memory() gave memory that is not pinned")
    with torch_npu.npu.stream(side):
        back.copy_(there.to(device, non_blocking=True), non_blocking=True)
        event = side.record_event()
    event.synchronize()
    require(torch.equal(there, back), "the bytes that came back are others")
    return f"{4 * ELEMENTS >> 20} MiB there and back without blocking"


def _captured(function: Any) -> tuple[Any, Any]:
    recorded = torch_npu.npu.NPUGraph()
    torch_npu.npu.synchronize()
    with torch_npu.npu.graph(recorded):
        result = function()
    torch_npu.npu.synchronize()
    return recorded, result


def graph(device: torch.device) -> str:
    x, w = torch.ones(8, 64, device=device), torch.ones(64, 64, device=device)
    recorded, result = _captured(lambda: torch.relu(x @ w) + x)
    for value in (1.0, -2.0, 3.0):
        x.fill_(value)
        recorded.replay()
        expected = max(64 * value, 0.0) + value
        require(bool((result == expected).all()), f"{result[0, 0].item()} instead of {expected} after a replay")
    return "3 replays with other inputs"


def graph_update(device: torch.device) -> str:
    """Lengths of captured attention, which a graph freezes, replaced by a task group's update."""
    size, heads = 128, 4
    query = torch.randn(2, heads, size).to(torch.float16).to(device)
    pages = [torch.randn(4, 128, heads * size).to(torch.float16).to(device) for _ in range(2)]
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32).to(device)
    mask = torch.triu(torch.ones(2048, 2048, dtype=torch.int8), diagonal=1).to(device)

    def arguments(lengths: list[int]) -> dict[str, Any]:
        return {
            "num_heads": heads,
            "num_key_value_heads": heads,
            "scale": size**-0.5,
            "input_layout": "TND",
            "actual_seq_lengths": [1, 2],
            "actual_seq_lengths_kv": lengths,
            "block_table": table,
            "block_size": 128,
            "sparse_mode": 3,
            "atten_mask": mask,
        }

    out, lse = torch.empty_like(query), torch.empty(1, dtype=torch.float32, device=device)
    first = arguments([5, 9])
    workspace = torch_npu._npu_fused_infer_attention_score_get_max_workspace(query, *pages, **first)

    def attend(lengths: list[int]) -> None:
        torch_npu.npu_fused_infer_attention_score.out(
            query, *pages, **arguments(lengths), workspace=workspace, out=[out, lse]
        )

    def captured() -> Any:
        stream = torch_npu.npu.current_stream()
        torch_npu.npu.graph_task_group_begin(stream)
        attend([5, 9])
        return torch_npu.npu.graph_task_group_end(stream)

    recorded, handle = _captured(captured)
    update, main = torch_npu.npu.Stream(device=device), torch_npu.npu.current_stream(device)
    for lengths in ([7, 130], [200, 1]):
        update.wait_stream(main)
        with torch_npu.npu.stream(update):
            torch_npu.npu.graph_task_update_begin(update, handle)
            attend(lengths)
            torch_npu.npu.graph_task_update_end(update)
        main.wait_stream(update)
        recorded.replay()
        expected = torch_npu.npu_fused_infer_attention_score(query, *pages, **arguments(lengths))[0]
        require(torch.equal(out, expected), f"attention over {lengths} keys differs after the update")
    return "attention's lengths replaced twice"
