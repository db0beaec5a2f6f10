# SPDX-License-Identifier: Apache-2.0
"""Asked of workers that serve latent attention: what they are made of, and what their prefills met. Only observes."""

from __future__ import annotations

from typing import Any


class LatentWorker:
    """Mixed into the worker; ``watch`` before what ``seen`` is to tell of."""

    model_runner: Any

    def watch(self) -> None:
        """From now on note, per prefill, the chunks of context that it attends to."""
        from vllm_ascend_patch.npu.attention.mla.backend import NPUMLAImpl

        chunks: list[int] = []
        original = NPUMLAImpl.forward_mha

        def noted(
            impl: Any, q: Any, latents: Any, ropes: Any, cache: Any, metadata: Any, *args: Any, **rest: Any
        ) -> None:
            context = metadata.prefill.chunked_context
            chunks.append(0 if context is None else len(context.chunks))
            original(impl, q, latents, ropes, cache, metadata, *args, **rest)

        NPUMLAImpl.forward_mha = noted  # type: ignore[method-assign, assignment]
        self._chunks = chunks

    def seen(self) -> dict[str, Any]:
        """Bytes of KV cache per token, as allocated; how the engine runs; chunks of context per prefill."""
        runner = self.model_runner
        config = runner.cache_config
        held = sum(cache.numel() * cache.element_size() for cache in runner.kv_caches)
        modules = list(runner.get_model().modules())
        return {
            "bytes_per_token": held / (config.num_gpu_blocks * config.block_size),
            "sequence_parallel": any(getattr(module, "is_sequence_parallel", False) for module in modules),
            "async_scheduling": bool(runner.use_async_scheduling),
            "chunks": getattr(self, "_chunks", []),
        }
