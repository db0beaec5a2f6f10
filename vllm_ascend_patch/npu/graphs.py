# SPDX-License-Identifier: Apache-2.0
"""ACL graphs of pieces and of whole steps: what upstream calls to capture and replay them.

vLLM splits a compiled model at its attention operators; the pieces between are captured with ``torch.npu.graph`` and
replayed, attention runs eagerly. A decode step can also be captured whole, attention included. Whether graphs are captured,
and which, is decided in ``compilation_defaults.py``.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch_npu
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger

from vllm_ascend_patch.seams.moe.tokens_before_0_14 import prepare_graph

from .attention.graph_tasks import GraphTasks
from .attention.layout import BLOCK_SIZE

logger = init_logger(__name__)


class NPUGraphWrapper(CUDAGraphWrapper):
    """Upstream's wrapper of a compiled piece; what it calls ``torch.cuda`` is torch_npu."""


class PreparingGraphWrapper(NPUGraphWrapper):
    """For releases in which the platform does not learn that a forward begins."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prepare_graph(get_forward_context())
        return super().__call__(*args, **kwargs)


class FullGraphWrapper(NPUGraphWrapper):
    """The whole model: its graphs are given each step's key lengths before they are replayed.

    The updates run on a stream of their own. It comes after the last replay, whose lengths they would change otherwise; the
    graph in turn waits for them at its first attention layer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tasks: dict[Any, GraphTasks] = {}
        self._updates = torch_npu.npu.Stream()
        self._replayed = torch_npu.npu.Event()

    def clear_graphs(self) -> None:
        super().clear_graphs()
        self._tasks.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from vllm.forward_context import is_forward_context_available  # not there in the oldest releases

        context = get_forward_context() if is_forward_context_available() else None
        if context is None or context.cudagraph_runtime_mode != self.runtime_mode:
            return super().__call__(*args, **kwargs)
        tasks = self._tasks.get(context.batch_descriptor)
        if tasks is None:
            return self._capture(context, *args, **kwargs)
        self._updates.wait_event(self._replayed)
        tasks.update(context.attn_metadata, self._updates)
        output = super().__call__(*args, **kwargs)
        self._replayed.record()
        return output

    def _capture(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        tasks = GraphTasks()
        for metadata in context.attn_metadata.values():
            metadata.tasks = tasks
        output = super().__call__(*args, **kwargs)
        self._tasks[context.batch_descriptor] = tasks
        return output


def with_updates(model: Any) -> Any:
    """``model``, with this port's wrapper in the place of upstream's around the whole of it."""
    if type(model) is not CUDAGraphWrapper:
        return model
    return FullGraphWrapper(model.runnable, model.vllm_config, model.runtime_mode, model.cudagraph_options)


def drop_large_full_graphs(dispatcher: Any) -> None:
    """Whole steps are captured up to ``BLOCK_SIZE`` rows; the rest keeps pieces, or runs eagerly without them.

    All rows of a rank may be padding, and each needs a slot of its own in the null block.
    """
    graphs = dispatcher.cudagraph_keys[CUDAGraphMode.FULL]
    large = sorted(graph.num_tokens for graph in graphs if graph.num_tokens > BLOCK_SIZE)
    if large:
        graphs -= {graph for graph in graphs if graph.num_tokens > BLOCK_SIZE}
        logger.info_once(
            "Ascend NPU: whole decode steps are captured for up to %d tokens, since each padded row needs a slot of its own "
            "in vLLM's null block; steps of %d to %d tokens run as they would without full graphs.",
            BLOCK_SIZE,
            large[0],
            large[-1],
        )


def map_graph_names() -> None:
    """Give upstream's wrapper the names that it captures with. For worker processes; idempotent."""
    torch.cuda.CUDAGraph = torch_npu.npu.NPUGraph  # type: ignore[misc]
    for name in ("graph", "graph_pool_handle", "is_current_stream_capturing"):
        setattr(torch.cuda, name, partial(getattr(torch_npu.npu, name)))
    _register_weak_reference()


@cache
def _register_weak_reference() -> torch.library.Library | None:
    """The operator that upstream keeps a graph's results with, which only its CUDA library defines."""
    if hasattr(torch.ops._C, "weak_ref_tensor"):
        return None
    library = torch.library.Library("_C", "FRAGMENT")
    library.define("weak_ref_tensor(Tensor input) -> Tensor")
    library.impl("weak_ref_tensor", torch_npu._C._weak_ref_tensor, "PrivateUse1")
    return library
