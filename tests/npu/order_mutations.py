# SPDX-License-Identifier: Apache-2.0
"""Script: whole decode steps and the active mask with one synchronisation taken away at a time, where order is checked.

python -m tests.npu.order_mutations       (under ``virtual-npu --check-order``; prints how each ends)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_npu
from vllm.config import CUDAGraphMode, VllmConfig, set_current_vllm_config
from vllm.forward_context import BatchDescriptor, get_forward_context, set_forward_context

from tests.npu.attention_in_graphs import REQUESTS, Case
from tests.support.processes import report
from vllm_ascend_patch.core.moe.active_mask import ActiveMask
from vllm_ascend_patch.npu.graphs import FullGraphWrapper, map_graph_names

Program = Callable[[], object]
"""What it returns is kept: vLLM's pool of graphs is not taken up again once its last graph is gone."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as scope:
        scope.setattr(owner, name, value)
        yield


def whole_steps() -> FullGraphWrapper:
    """A capture and three replays by the product's wrapper, as upstream's runner calls it."""
    config, case = VllmConfig(), Case(128, 1, None, False)
    map_graph_names()

    def attend() -> torch.Tensor:
        case.attend(get_forward_context().attn_metadata["layer"], case.output)
        return case.output

    with set_current_vllm_config(config):
        model = FullGraphWrapper(attend, config, CUDAGraphMode.FULL)
    case.fill([8] * REQUESTS)
    torch_npu.npu.synchronize()
    with torch_npu.npu.stream(torch_npu.npu.Stream()):
        run_steps(model, case, config)
    return model


def run_steps(model: FullGraphWrapper, case: Case, config: VllmConfig) -> None:
    """Nothing here makes the host wait, which would order everything."""
    for step in range(4):
        lengths = [2 + step] * REQUESTS
        context = {"cudagraph_runtime_mode": CUDAGraphMode.FULL, "batch_descriptor": BatchDescriptor(REQUESTS)}
        with set_forward_context({"layer": case.metadata(lengths)}, config, **context):
            model()


def active_mask() -> None:
    """A captured step that reads the mask, replayed for other numbers of rows."""
    mask, rows = ActiveMask(8, "npu"), torch.ones(8, 4, device="npu")
    torch_npu.npu.synchronize()
    graph = torch_npu.npu.NPUGraph()
    with torch_npu.npu.graph(graph):
        rows.masked_fill_(mask.first(8).logical_not().unsqueeze(1), 0.0)
    torch_npu.npu.synchronize()
    for active in (5, 3):
        mask.set(active)
        graph.replay()
    torch_npu.npu.synchronize()


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def no_wait_for_the_replay() -> Iterator[None]:
    with replaced(torch_npu.npu.Stream, "wait_event", lambda self, event: None):
        yield


@contextmanager
def no_record_of_the_replay() -> Iterator[None]:
    with replaced(torch_npu.npu.Event, "record", lambda self, stream=None: None):
        yield


@contextmanager
def mask_on_a_side_stream() -> Iterator[None]:
    original, side = ActiveMask.set, torch_npu.npu.Stream()

    def elsewhere(self: ActiveMask, active: int) -> None:
        with torch_npu.npu.stream(side):
            original(self, active)

    with replaced(ActiveMask, "set", elsewhere):
        yield


CASES: dict[str, tuple[Program, Any]] = {
    "whole steps": (whole_steps, nothing),
    "the active mask": (active_mask, nothing),
    "whole steps, no_wait_for_the_replay": (whole_steps, no_wait_for_the_replay),
    "whole steps, no_record_of_the_replay": (whole_steps, no_record_of_the_replay),
    "the active mask, mask_on_a_side_stream": (active_mask, mask_on_a_side_stream),
}


def end_of(program: Program, mutation: Any, kept: list[object]) -> str:
    torch_npu.npu.synchronize()
    try:
        with mutation():
            kept.append(program())
        torch_npu.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch_npu.npu.set_device(0)
    with torch.inference_mode():
        kept: list[object] = []
        report({name: end_of(program, mutation, kept) for name, (program, mutation) in CASES.items()})
