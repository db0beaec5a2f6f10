# SPDX-License-Identifier: Apache-2.0
"""Where the installed vLLM keeps the classes that latent attention derives from: names, and a stand-in for one."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
)

try:
    from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend

    CHOOSES_KERNELS = False
    """Whether upstream's implementation chooses CUDA kernels for prefill while it is made: the releases before 0.21."""
except ImportError:
    CHOOSES_KERNELS = True

    class MLAPrefillBackend:  # type: ignore[no-redef]
        """What the later base class keeps, as far as it is used here."""

        def __init__(self, *, num_heads: int, scale: float, **_: Any) -> None:
            self.num_heads = num_heads
            self.scale = scale


__all__ = [
    "CHOOSES_KERNELS",
    "MLACommonBackend",
    "MLACommonDecodeMetadata",
    "MLACommonImpl",
    "MLACommonMetadata",
    "MLACommonMetadataBuilder",
    "MLAPrefillBackend",
    "QueryLenSupport",
]
