# SPDX-License-Identifier: Apache-2.0
"""Answers vLLM's question for an attention backend, or refuses with the reason.

Binds the selector's arguments by name, because their form changed over vLLM's releases.
"""

from __future__ import annotations

from typing import Any

_BACKEND = "vllm_ascend_patch.npu.attention.backend.NPUAttentionBackend"
_LATENT_BACKEND = "vllm_ascend_patch.npu.attention.mla.backend.NPUMLABackend"

_REFUSED = {
    "use_sparse": "sparse attention",
    "use_mm_prefix": "bidirectional multimodal prefixes",
    "use_rswa": "reference sliding windows",
    "use_non_causal": "non-causal attention",
}


def backend_class_path(selected_backend: Any, *args: Any, **kwargs: Any) -> str:
    """Dotted path of the backend class; raises ``ValueError`` for attention that it does not do."""
    config = kwargs.get("attn_selector_config") or next((a for a in args if hasattr(a, "_asdict")), None)
    wanted = config._asdict() if config is not None else kwargs
    for flag, what in _REFUSED.items():
        if wanted.get(flag):
            raise ValueError(f"{what} is not supported on Ascend NPUs by this port.")
    if selected_backend is not None and getattr(selected_backend, "name", "CUSTOM") != "CUSTOM":
        raise ValueError(
            f"attention backend {selected_backend.name} does not run on Ascend NPUs; leave the option out: the port "
            "brings its own."
        )
    return _LATENT_BACKEND if wanted.get("use_mla") else _BACKEND
