# SPDX-License-Identifier: Apache-2.0
"""Where the installed vLLM keeps the classes that an attention backend derives from. Names only, no code.

One module has them all in new releases; before, they are spread over two.
"""

try:
    from vllm.v1.attention.backend import (
        AttentionBackend,
        AttentionImpl,
        AttentionMetadataBuilder,
        AttentionType,
        CommonAttentionMetadata,
    )
except ImportError:
    from vllm.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionType
    from vllm.v1.attention.backends.utils import AttentionMetadataBuilder, CommonAttentionMetadata

__all__ = ["AttentionBackend", "AttentionImpl", "AttentionMetadataBuilder", "AttentionType", "CommonAttentionMetadata"]
