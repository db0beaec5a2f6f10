# SPDX-License-Identifier: Apache-2.0
"""Asks the platform which class does the prefill of latent attention (MLA), as vLLM itself does from 0.32 on."""

from __future__ import annotations

from typing import Any


def get_mla_prefill_backend(original: Any, *_: Any, **__: Any) -> type[Any]:
    """The platform's answer in place of upstream's, which knows CUDA's kernels only."""
    from vllm.platforms import current_platform

    return current_platform.get_mla_prefill_backend_cls(None)
