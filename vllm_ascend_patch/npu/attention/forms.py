# SPDX-License-Identifier: Apache-2.0
"""Which layout serves a layer on this machine: asked of the operators once per kind of layer, said in the log.

For workers; what a configuration tells is asked before, in a process of its own (``attention_check.py``).
"""

from __future__ import annotations

from functools import cache

import torch
from vllm.logger import init_logger

from vllm_ascend_patch.core.attention_forms import AttentionForm, refusal
from vllm_ascend_patch.core.model_traits import FLOAT_DTYPES

from .layout import QueryLayout, query_layout

logger = init_logger(__name__)


def form_of(heads: int, kv_heads: int, head_size: int, window: bool, sinks: bool) -> AttentionForm:
    """The form of a layer that is being made: its dtype is torch's default then, and any other is not served."""
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    return AttentionForm(
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        dtype=default if default in FLOAT_DTYPES else "bfloat16",
        window=window,
        sinks=sinks,
    )


@cache
def layout_of(form: AttentionForm) -> QueryLayout:
    """TND, which takes a batch in one call, where the operators take ``form`` in it; else BSND.

    Raises:
        NotImplementedError: for a window or sinks that they do not take: BSND has neither.
    """
    if query_layout(form.head_size) is QueryLayout.TND and not (form.window or form.sinks):
        return QueryLayout.TND  # documented for every CANN
    reason = refusal(form)
    if reason is None:
        logger.info("Ascend NPU: %s takes a whole batch in one call (TND).", described(form))
        return QueryLayout.TND
    if form.window or form.sinks:
        raise NotImplementedError(f"{described(form)} is not taken by the installed CANN: {reason}")
    logger.info("Ascend NPU: %s takes a call for each prompt (BSND): in one, %s", described(form), reason)
    return QueryLayout.BSND


def described(form: AttentionForm) -> str:
    """In words, for the log and for errors."""
    features = [name for name, on in (("sliding windows", form.window), ("sinks", form.sinks)) if on]
    beside = f" and {' and '.join(features)}" if features else ""
    heads = f"{form.heads} query heads, {form.kv_heads} KV heads"
    return f"{form.dtype} attention with head size {form.head_size}, {heads}{beside}"
