# SPDX-License-Identifier: Apache-2.0
"""Script: attention layers, each captured whole, replayed for batches that grow and shrink, over memory that is poisoned.

python -m tests.npu.attention_in_graphs       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

from types import SimpleNamespace
from typing import Any

import torch
import torch_npu

from tests.support.installed import HAS_LATENT_ATTENTION
from tests.support.processes import report
from vllm_ascend_patch.npu.attention.backend import NPUAttentionImpl
from vllm_ascend_patch.npu.attention.graph_tasks import GraphTasks
from vllm_ascend_patch.npu.attention.layout import split_pages
from vllm_ascend_patch.npu.attention.metadata import NPUAttentionMetadata
from vllm_ascend_patch.virtual_npu import profile

if HAS_LATENT_ATTENTION:
    from vllm.forward_context import override_forward_context

    from vllm_ascend_patch.npu.attention.mla.backend import NPUMLAImpl
    from vllm_ascend_patch.npu.attention.mla.layout import split_cache
    from vllm_ascend_patch.npu.attention.mla.metadata import NPUMLADecodeMetadata, NPUMLAMetadata

HEADS, KV_HEADS, BLOCK, BLOCKS, REQUESTS = 4, 2, 128, 9, 4
LAYER = SimpleNamespace(layer_name="layer")


class Case:
    """A layer with vLLM's tensors of one step, which stay where they are from step to step."""

    def __init__(self, head_size: int, tokens: int, window: int | None, sinks: bool) -> None:
        self.tokens, rows = tokens, REQUESTS * tokens
        self.scale, self.window, self.kv_heads = 0.1, window, KV_HEADS
        dtype = torch.bfloat16 if sinks else torch.float16
        self.sinks = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype, device="npu") if sinks else None
        self.impl = NPUAttentionImpl(HEADS, head_size, self.scale, KV_HEADS, sliding_window=window, sinks=self.sinks)
        self.layout = self.impl.layout.value
        pages = torch.full((BLOCKS, KV_HEADS, BLOCK, 2 * head_size), float("nan"), dtype=dtype, device="npu")
        self.cache = pages
        self.query = torch.zeros(rows, HEADS * head_size, dtype=dtype, device="npu")
        self.key, self.value = (torch.zeros(rows, KV_HEADS, head_size, dtype=dtype, device="npu") for _ in range(2))
        self.table = torch.zeros(REQUESTS, 2, dtype=torch.int32, device="npu")
        self.slots = torch.full((rows,), -1, dtype=torch.int64, device="npu")
        self.output = torch.zeros(rows, HEADS * head_size, dtype=dtype, device="npu")

    def metadata(self, lengths: list[int], requests: int = REQUESTS) -> Any:
        ends = [self.tokens * (request + 1) for request in range(requests)]
        real = sum(length > 0 for length in lengths) * self.tokens
        decodes = requests if self.tokens == 1 else 0
        rows = requests * self.tokens
        return NPUAttentionMetadata(real, decodes, ends, lengths, self.table[:requests], self.slots[:rows], BLOCK)

    def attend(self, metadata: Any, output: torch.Tensor) -> None:
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
            tensor[:rows] = torch.randn(rows, *tensor.shape[1:]).to(tensor.dtype)
        self.table.zero_()
        self.slots.fill_(-1)
        for request, length in enumerate(lengths):
            if length:
                self.table[request] = torch.tensor([1 + 2 * request, 2 + 2 * request], dtype=torch.int32)
                positions = torch.arange(length - self.tokens, length)
                slots = (1 + 2 * request + positions // BLOCK) * BLOCK + positions % BLOCK
                self.slots[request * self.tokens : (request + 1) * self.tokens] = slots

    def blocks(self) -> torch.Tensor:
        """A copy of the cache by block, as integers."""
        return self.cache.view(torch.int16).clone()

    def keys_and_values(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the cache holds of a request, in float64: ``[positions, KV heads, size]`` each."""
        blocks = [2 * (1 + 2 * request), 2 * (2 + 2 * request)]
        keys, values = (pages.cpu().double()[blocks].flatten(0, 1) for pages in split_pages(self.cache))
        return keys, values


class LatentCase(Case):
    """The same of absorbed latent attention; its output is latents."""

    def __init__(self, tokens: int) -> None:
        self.tokens, rows = tokens, REQUESTS * tokens
        self.latent = object.__new__(NPUMLAImpl)
        self.latent.__dict__.update(scale=0.1)
        self.scale, self.window, self.sinks, self.kv_heads = 0.1, None, None, 1
        self.layout = "BSND" if tokens == 1 else "TND"
        self.cache = torch.full((BLOCKS, BLOCK, 576), float("nan"), dtype=torch.float16, device="npu")
        self.query, self.key, self.value, self.output = (
            torch.zeros(rows, *shape, dtype=torch.float16, device="npu")
            for shape in ((HEADS, 576), (512,), (1, 64), (HEADS * 512,))
        )
        self.table = torch.zeros(REQUESTS, 2, dtype=torch.int32, device="npu")
        self.slots = torch.full((rows,), -1, dtype=torch.int64, device="npu")

    def metadata(self, lengths: list[int], requests: int = REQUESTS) -> Any:
        rows = requests * self.tokens
        decode = NPUMLADecodeMetadata(
            block_table=self.table[:requests],
            seq_lens=self.table[:requests, 0],
            dcp_tot_seq_lens=None,
            query_ends=[self.tokens * (request + 1) for request in range(requests)],
            context_lens=lengths,
        )
        return NPUMLAMetadata(
            num_reqs=requests,
            max_query_len=self.tokens,
            max_seq_len=max(lengths),
            num_actual_tokens=rows,
            query_start_loc=self.table,
            slot_mapping=self.slots[:rows],
            num_decodes=requests,
            num_decode_tokens=rows,
            num_prefills=0,
            decode=decode,
        )

    def attend(self, metadata: Any, output: torch.Tensor) -> None:
        rows = metadata.num_actual_tokens
        with override_forward_context(SimpleNamespace(attn_metadata={"layer": metadata})):
            self.latent.do_kv_cache_update(self.key[:rows], self.value[:rows], self.cache, metadata.slot_mapping)
            query = self.query[:rows].split([512, 64], dim=-1)
            found, _ = self.latent.forward_mqa(query, self.cache, metadata, LAYER)
        output[:rows] = found.flatten(1)

    def blocks(self) -> torch.Tensor:
        return split_cache(self.cache)[0].view(torch.int16).clone()

    def keys_and_values(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents, ropes = (
            part.cpu().double()[1 + 2 * request : 3 + 2 * request].reshape(2 * BLOCK, 1, -1)
            for part in split_cache(self.cache)
        )
        return torch.cat((latents, ropes), dim=-1), latents


def formula(case: Case, lengths: list[int]) -> torch.Tensor:
    """What the step's rows are to be, in float64, from the cache: a window has a query's own token and those before it."""
    group = HEADS // case.kv_heads
    rows: list[torch.Tensor] = []
    query = case.query.cpu().double().view(case.query.shape[0], HEADS, -1)
    for request, length in enumerate(lengths):
        keys, values = case.keys_and_values(request)
        for token in range(case.tokens):
            last = length - case.tokens + token
            seen = slice(max(0, last + 1 - (case.window or last + 1)), last + 1)
            for head in range(HEADS):
                scores = keys[seen, head // group] @ query[len(rows) // HEADS, head] * case.scale
                total = scores.exp().sum() + (0 if case.sinks is None else case.sinks[head].cpu().double().exp())
                rows.append((scores.exp() / total) @ values[seen, head // group])
    return torch.stack(rows).view(len(rows) // HEADS, -1)


def steps(case: Case, eager: Case) -> list[dict[str, Any]]:
    """What each replay gave, held against eager calls on a cache of their own."""
    tokens = case.tokens
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
        before = case.blocks()
        graph.replay()
        expected, rows = torch.zeros_like(case.output), active * tokens
        if active:
            eager.attend(eager.metadata(lengths[:active], active), expected)
            wanted = formula(eager, lengths[:active])
            right = (expected[:rows].cpu().double() - wanted).abs().max() <= 2**-7 * wanted.abs().max()
        written = (case.blocks() != before).flatten(1).any(1).nonzero().flatten()
        found.append(
            {
                "layout": case.layout,
                "right": not active or bool(right),
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
        forms: list[tuple[int, int | None, bool]] = [(64, None, False), (128, None, False)]
        if profile.current().cann != "8.5":
            forms += [(64, 4, False), (64, None, True), (128, 4, True)]
        found = {}
        for tokens in (1, 3):
            for head_size, window, sinks in forms:
                made = [Case(head_size, tokens, window, sinks) for _ in range(2)]
                found[str((head_size, window, sinks, tokens))] = steps(*made)
            if HAS_LATENT_ATTENTION:
                found[f"latent, {tokens}"] = steps(LatentCase(tokens), LatentCase(tokens))
        report(found)
