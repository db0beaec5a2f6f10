# SPDX-License-Identifier: Apache-2.0
"""Which forms of attention the installed operators take, found out by a tiny call of each. torch and torch_npu only.

What CANN takes in layout TND (head sizes, bands, sinks) differs from release to release and is written down nowhere whole,
so it is asked. Answers are held against values: a form that is taken and computed otherwise is refused, too. Imports nothing
of this package: as a script it is a process of its own, in which a broken call hurts nobody.

python -P attention_forms.py '[{"heads": 8, "kv_heads": 2, "head_size": 64, "dtype": "bfloat16"}]'
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

_BLOCK, _MASK = 128, 2048
_WINDOW = 2
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class AttentionForm:
    """Paged causal attention of a whole batch in one call.

    Attributes:
        heads: query heads of the rank.
        kv_heads: KV heads of the rank.
        head_size: of queries, keys and values.
        dtype: of all tensors, as in ``str(torch.dtype)`` without the prefix.
        window: a query sees its last tokens only.
        sinks: each head has a logit that takes part in the softmax's sum and has no value.
    """

    heads: int
    kv_heads: int
    head_size: int
    dtype: str
    window: bool = False
    sinks: bool = False


def refusal(form: AttentionForm) -> str | None:
    """Why the current NPU does not compute ``form``: the first line of what its operators say; None if it does."""
    import torch_npu

    try:
        found = _call(form)
    except (RuntimeError, TypeError) as error:  # TypeError: a wheel without the argument
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    finally:
        torch_npu.npu.synchronize()
    wanted = _values(form)
    if any(abs(got - value) > _TOLERANCE * value for got, value in zip(found, wanted, strict=True)):
        return f"it gives {[round(got, 3) for got in found]} where {[round(value, 3) for value in wanted]} is right"
    return None


def _values(form: AttentionForm) -> list[float]:
    """Of a request with one query over three keys and of one with two over two; scores are 0, values 1, 2, 4."""
    sink = 1 if form.sinks else 0
    last = (2 + 4) / (2 + sink) if form.window else (1 + 2 + 4) / (3 + sink)
    return [last, 1 / (1 + sink), 3 / (2 + sink)]


def _call(form: AttentionForm) -> list[float]:
    """The first element of each query's result. All elements are compared by none: a row holds one number throughout."""
    import torch
    import torch_npu

    dtype, device = getattr(torch, form.dtype), torch.device("npu", torch_npu.npu.current_device())
    query = torch.zeros(3, form.heads, form.head_size, dtype=dtype, device=device)
    rows = torch.zeros(2, _BLOCK, form.kv_heads * form.head_size, dtype=dtype)
    value = rows.clone()
    value[:, :3] = torch.tensor([1.0, 2.0, 4.0]).view(3, 1).to(dtype)
    common: dict[str, Any] = {
        "num_key_value_heads": form.kv_heads,
        "input_layout": "TND",
        "block_table": torch.tensor([[0], [1]], dtype=torch.int32).to(device),
        "block_size": _BLOCK,
        "atten_mask": torch.triu(torch.ones(_MASK, _MASK, dtype=torch.int8), diagonal=1).to(device),
        "sparse_mode": 3,
    }
    if form.window:
        common |= {"sparse_mode": 4, "pre_tokens": _WINDOW - 1, "next_tokens": 0}
    ends, lengths = [1, 3], [3, 2]
    caches = (rows.to(device), value.to(device))
    if form.sinks:
        result = torch_npu.npu_fused_infer_attention_score_v2(
            query,
            *caches,
            num_query_heads=form.heads,
            softmax_scale=1.0,
            actual_seq_qlen=ends,
            actual_seq_kvlen=lengths,
            learnable_sink=torch.zeros(form.heads, dtype=dtype, device=device),
            **common,
        )[0]
    else:
        result = torch_npu.npu_fused_infer_attention_score(
            query,
            *caches,
            num_heads=form.heads,
            scale=1.0,
            actual_seq_lengths=ends,
            actual_seq_lengths_kv=lengths,
            **common,
        )[0]
    return [float(number) for number in result[:, 0, 0].cpu()]


if __name__ == "__main__":
    answers = [refusal(AttentionForm(**form)) for form in json.loads(sys.argv[1])]
    print(json.dumps(answers), file=sys.__stdout__, flush=True)
    os._exit(0)  # no teardown: somebody waits
