# SPDX-License-Identifier: Apache-2.0
"""The fused attention operator in the version that a layer needs: the second one for sinks, which renames arguments.

Callers use the names of the first one. No vLLM here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_npu

_RENAMED = {
    "num_heads": "num_query_heads",
    "scale": "softmax_scale",
    "actual_seq_lengths": "actual_seq_qlen",
    "actual_seq_lengths_kv": "actual_seq_kvlen",
}


@dataclass(frozen=True)
class FusedAttention:
    """Calls ``npu_fused_infer_attention_score``, or version 2 with ``sinks``: bfloat16 ``[heads]``, not scaled."""

    sinks: torch.Tensor | None = None

    def attend(self, *tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """The attention output, for query, key cache and value cache."""
        if self.sinks is None:
            return torch_npu.npu_fused_infer_attention_score(*tensors, **arguments)[0]
        return torch_npu.npu_fused_infer_attention_score_v2(*tensors, **self._second(arguments))[0]

    def workspace(self, *tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Memory for ``attending_into`` with any lengths."""
        if self.sinks is None:
            return torch_npu._npu_fused_infer_attention_score_get_max_workspace(*tensors, **arguments)
        return torch_npu._npu_fused_infer_attention_score_v2_get_max_workspace(*tensors, **self._second(arguments))

    def attending_into(
        self, out: list[torch.Tensor], workspace: torch.Tensor, *tensors: torch.Tensor, **arguments: Any
    ) -> Callable[[list[int]], Any]:
        """The call as a graph captures and updates it: it takes key lengths, and fills ``out``, the attention output and the
        log-sum-exp. Everything else is bound here, once for all steps."""
        operator, lengths = torch_npu.npu_fused_infer_attention_score.out, "actual_seq_lengths_kv"
        if self.sinks is not None:
            operator = torch_npu.npu_fused_infer_attention_score_v2.out
            arguments, lengths = self._second(arguments), _RENAMED[lengths]
        call = partial(operator, *tensors, workspace=workspace, out=out, **arguments)
        return lambda context_lens: call(**{lengths: context_lens})

    def _second(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"learnable_sink": self.sinks, **{_RENAMED.get(name, name): value for name, value in arguments.items()}}
