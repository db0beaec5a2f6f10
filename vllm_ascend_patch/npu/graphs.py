# SPDX-License-Identifier: Apache-2.0
"""ACL graphs for upstream's piecewise compilation: what upstream calls to capture and replay them.

vLLM splits a compiled model at its attention operators; the pieces between are captured with ``torch.npu.graph`` and
replayed, attention runs eagerly. Whether graphs are captured, and which, is decided in ``compilation_defaults.py``.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch_npu
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.forward_context import get_forward_context

from vllm_ascend_patch.seams.moe.tokens_before_0_14 import prepare_graph


class NPUGraphWrapper(CUDAGraphWrapper):
    """Upstream's wrapper of a compiled piece; what it calls ``torch.cuda`` is torch_npu."""


class PreparingGraphWrapper(NPUGraphWrapper):
    """For releases in which the platform does not learn that a forward begins."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prepare_graph(get_forward_context())
        return super().__call__(*args, **kwargs)


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
