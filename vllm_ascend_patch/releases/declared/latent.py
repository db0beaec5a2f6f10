# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that multi-head latent attention (MLA) needs. Imports neither torch nor vLLM.

What they do is in ``seams/port/``.
"""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

LATENT_LAYER = Patch(
    id="latent-padding",
    target="vllm.model_executor.layers.attention.mla_attention:MLAAttention.forward_impl",
    kind=Kind.WRAP,
    implementation="vllm_ascend_patch.seams.port.latent_attention:forward_impl",
    reads=("attn_metadata", "output"),
    releases=">=0.17",
    why=(
        "Upstream leaves rows of a padded batch unwritten, which MoE layers then route; and its profiling run sees one "
        "of the tensors that prefill takes."
    ),
    how="Zeroes rows past the real tokens; a profiling run allocates what the largest chunk of context takes.",
    upstream="none: its own kernels tolerate what is in memory",
    remove_when="vLLM zeroes padded rows of latent attention on every device",
)
"""Releases for which it is not declared refuse these models (``releases/latent.py``): before 0.17 the layer itself calls
CUDA's kernel to write its cache."""

_PREFILL = "vllm.v1.attention.backends.mla.prefill"

PATCHES: tuple[Patch, ...] = (
    LATENT_LAYER,
    Patch(
        id="latent-prefill",
        target=f"{_PREFILL}.selector:get_mla_prefill_backend",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.port.latent_prefill:get_mla_prefill_backend",
        aliases=(
            f"{_PREFILL}:get_mla_prefill_backend",
            "vllm.model_executor.layers.attention.mla_attention:get_mla_prefill_backend",
            "vllm.models.kimi_k3.nvidia.mla:get_mla_prefill_backend",
            "vllm.model_executor.warmup.fa4_cutedsl_warmup:get_mla_prefill_backend",
        ),
        releases=">=0.21,<0.32",
        why="Which class does the prefill of latent attention is chosen among CUDA's kernels; no platform is asked.",
        how="Asks the platform.",
        upstream="Platform.get_mla_prefill_backend_cls, from 0.32 on",
        remove_when="the releases without that question are no longer supported",
    ),
    Patch(
        id="deepseek-one-token",
        target="vllm.model_executor.models.deepseek_v2:DeepseekV2ForCausalLM.forward",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.port.single_token:forward",
        reads=("input_ids", "positions", "inputs_embeds"),
        releases=">=0.25",
        why=(
            "With experts and data on several ranks upstream tells by the number of rows whether they are one tensor "
            "parallel rank's share. An eager step of one token has as many as its share: nothing is gathered, and all "
            "ranks but the first go on with padding."
        ),
        how="Gives such a step a second row.",
        upstream="none known",
        remove_when="upstream gathers the shares of a step of one token",
    ),
)
