# SPDX-License-Identifier: Apache-2.0
"""The attention calls of one captured step, whose key lengths change from replay to replay. No vLLM here.

The operator takes lengths from the host, and a captured call keeps those of its capture. So each layer's call is a task
group of its graph, and before a replay every group is given the step's lengths on a stream of its own. All groups of a graph
are updated before it is replayed, hence one external event per graph, not one per layer, holds its first attention back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_npu
from torch_npu._C import _weak_ref_tensor as weak

from .fused_attention import FusedAttention

AttentionCall = Callable[[list[int]], Any]
"""Attends for one layer, given the key length of every request, into memory that stays where it is."""


@dataclass(frozen=True, slots=True)
class _Task:
    layer: str
    call: AttentionCall
    handle: Any


class GraphTasks:
    """What one graph's attention layers recorded while it was captured."""

    def __init__(self) -> None:
        self._event = torch_npu.npu.ExternalEvent()
        self._tasks: list[_Task] = []

    def capture(self, layer: str, call: AttentionCall, lengths: list[int]) -> None:
        """Record ``call`` on the current stream, which is being captured.

        Args:
            layer: name of the layer; ``update`` finds its lengths by it.
            call: makes the same operator call on the same tensors whenever it is called.
            lengths: key lengths during the capture, one per request of the graph.
        """
        stream = torch_npu.npu.current_stream()
        if not self._tasks:
            self._event.wait(stream)
            self._event.reset(stream)
        torch_npu.npu.graph_task_group_begin(stream)
        call(lengths)
        self._tasks.append(_Task(layer, call, torch_npu.npu.graph_task_group_end(stream)))

    def capture_fused(
        self,
        layer: str,
        operator: FusedAttention,
        inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        out: torch.Tensor,
        lengths: list[int],
        arguments: Mapping[str, Any],
    ) -> None:
        """Record one call of ``operator``.

        Tensors are referred to weakly: memory of a graph stays where it is, but the graph may use it again after the layer.

        Args:
            inputs: query, key cache, value cache.
            out: of the query's shape; holds the result of a replay.
            arguments: all further ones but the key lengths.
        """
        query, *pages = inputs
        workspace = operator.workspace(*inputs, actual_seq_lengths_kv=lengths, **arguments)
        sums = torch.empty(1, dtype=torch.float32, device=query.device)  # not asked for, but the form wants it
        kept = {name: weak(value) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
        call = operator.attending_into([weak(out), weak(sums)], weak(workspace), weak(query), *pages, **kept)
        self.capture(layer, call, lengths)

    def update(self, metadata: Mapping[str, Any], stream: torch_npu.npu.Stream) -> None:
        """Give every call the lengths of the step that is replayed next.

        Args:
            metadata: the step's attention metadata by layer, with ``replayed_lens``.
            stream: comes after the graph's last replay.
        """
        with torch_npu.npu.stream(stream):
            for task in self._tasks:
                torch_npu.npu.graph_task_update_begin(stream, task.handle)
                task.call(metadata[task.layer].replayed_lens)
                torch_npu.npu.graph_task_update_end(stream)
            self._event.record(stream)
