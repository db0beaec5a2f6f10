# SPDX-License-Identifier: Apache-2.0
"""Script: one attention layer captured whole, replayed for batches that grow and shrink, over memory that is poisoned.

python -m tests.npu.attention_in_graphs       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

from types import SimpleNamespace
from typing import Any

import torch
import torch_npu

from tests.support.processes import report
from vllm_ascend_patch.npu.attention.backend import NPUAttentionImpl
from vllm_ascend_patch.npu.attention.graph_tasks import GraphTasks
from vllm_ascend_patch.npu.attention.metadata import NPUAttentionMetadata

HEADS, KV_HEADS, BLOCK, BLOCKS, REQUESTS = 4, 2, 128, 9, 4
LAYER = SimpleNamespace(layer_name="layer")


class Case:
    """A layer with vLLM's tensors of one step, which stay where they are from step to step."""

    def __init__(self, head_size: int, tokens: int) -> None:
        self.tokens, rows = tokens, REQUESTS * tokens
        self.impl = NPUAttentionImpl(HEADS, head_size, 0.1, KV_HEADS)
        pages = torch.full((BLOCKS, KV_HEADS, BLOCK, 2 * head_size), float("nan"), dtype=torch.float16, device="npu")
        self.cache = pages
        self.query = torch.zeros(rows, HEADS * head_size, dtype=torch.float16, device="npu")
        self.key, self.value = (
            torch.zeros(rows, KV_HEADS, head_size, dtype=torch.float16, device="npu") for _ in range(2)
        )
        self.table = torch.zeros(REQUESTS, 2, dtype=torch.int32, device="npu")
        self.slots = torch.full((rows,), -1, dtype=torch.int64, device="npu")
        self.output = torch.zeros(rows, HEADS * head_size, dtype=torch.float16, device="npu")

    def metadata(self, lengths: list[int], requests: int = REQUESTS) -> NPUAttentionMetadata:
        ends = [self.tokens * (request + 1) for request in range(requests)]
        real = sum(length > 0 for length in lengths) * self.tokens
        decodes = requests if self.tokens == 1 else 0
        rows = requests * self.tokens
        return NPUAttentionMetadata(real, decodes, ends, lengths, self.table[:requests], self.slots[:rows], BLOCK)

    def attend(self, metadata: NPUAttentionMetadata, output: torch.Tensor) -> None:
        rows = metadata.slot_mapping.shape[0]
        self.impl.forward(
            LAYER, self.query[:rows], self.key[:rows], self.value[:rows], self.cache, metadata, output[:rows]
        )

    def fill(self, lengths: list[int]) -> None:
        """The step's rows: requests in blocks 1, 2 and 3, 4 and so on; padding holds NaN."""
        torch.manual_seed(sum(lengths))
        rows = sum(length > 0 for length in lengths) * self.tokens
        for tensor in (self.query, self.key, self.value):
            tensor.fill_(float("nan"))
            tensor[:rows] = torch.randn(rows, *tensor.shape[1:]).half()
        self.table.zero_()
        self.slots.fill_(-1)
        for request, length in enumerate(lengths):
            if length:
                self.table[request] = torch.tensor([1 + 2 * request, 2 + 2 * request], dtype=torch.int32)
                positions = torch.arange(length - self.tokens, length)
                slots = (1 + 2 * request + positions // BLOCK) * BLOCK + positions % BLOCK
                self.slots[request * self.tokens : (request + 1) * self.tokens] = slots


def steps(head_size: int, tokens: int) -> list[dict[str, Any]]:
    """What each replay gave, held against eager calls on a cache of their own."""
    case, eager = Case(head_size, tokens), Case(head_size, tokens)
    context = [2 * tokens] * REQUESTS
    graph, tasks = torch_npu.npu.NPUGraph(), GraphTasks()
    with torch_npu.npu.graph(graph):
        metadata = case.metadata(context)
        metadata.tasks = tasks
        case.attend(metadata, case.output)
    updates, found = torch_npu.npu.Stream(), []
    lengths = [0] * REQUESTS
    for active in (2, 4, 1, 0, 3, 3):
        lengths = [length + tokens if request < active else 0 for request, length in enumerate(lengths)]
        for one in (case, eager):
            one.fill(lengths)
        updates.wait_stream(torch_npu.npu.current_stream())
        tasks.update({"layer": case.metadata(lengths)}, updates)
        before = case.cache.clone()
        graph.replay()
        expected, rows = torch.zeros_like(case.output), active * tokens
        if active:
            eager.attend(eager.metadata(lengths[:active], active), expected)
        written = (case.cache.view(torch.int16) != before.view(torch.int16)).flatten(1).any(1).nonzero().flatten()
        found.append(
            {
                "equal": torch.equal(case.output[:rows], expected[:rows]),
                "finite": bool(case.output.isfinite().all()),
                "padding": float(case.output[rows:].abs().sum()),
                "written": sorted(set(written.tolist()) - {0}),
                "wanted": sorted({1 + 2 * r + (length - 1) // BLOCK for r, length in enumerate(lengths) if length}),
            }
        )
    return found


if __name__ == "__main__":
    torch_npu.npu.set_device(0)
    with torch.inference_mode():
        report({f"{head_size}, {tokens}": steps(head_size, tokens) for head_size in (64, 128) for tokens in (1, 3)})
