# SPDX-License-Identifier: Apache-2.0
"""Why architectures of vLLM's registry have no tiny model here. One that is not named here is simply new."""

from __future__ import annotations

_LANGUAGE = "takes images, too; of its language model nothing was tried"
_REFUSED = "a start refuses its architecture by name; no tiny model was made"
_LATENT = "latent attention of a model that is not among those served: refused by a start; no tiny model was made"
_SPARSE = "sparse attention or compressed caches of its own, on kernels of its own; no tiny model was made"
_DENSE = "dense as published; vLLM's class shares code with a family that has experts"
_STATES = "layers that keep a state, refused by a start; no tiny model was made"
_NEW = "of vLLM 0.33; models are run on 0.32.0"

UNTRIED: dict[str, str] = {
    "AliceAIForCausalLM": _NEW,
    "BailingMoeV3ForCausalLM": _STATES,
    "BailingMoeV3VLForConditionalGeneration": _STATES,
    "BeamForCausalLM": _NEW,
    "Cosmos3EdgeForConditionalGeneration": _LANGUAGE,
    "DeepseekV41ForCausalLM": _SPARSE,
    "DeepseekV4ForCausalLM": _SPARSE,
    "DeepseekV4ForConditionalGeneration": _SPARSE,
    "DiffusionGemmaForBlockDiffusion": "generates by diffusion of blocks, with attention that is not causal",
    "Dots3NoteForCausalLM": _SPARSE,
    "Ernie4_5_VLMoeForConditionalGeneration": _LANGUAGE,
    "FlintForCausalLM": _NEW,
    "Gemma4UnifiedForConditionalGeneration": _DENSE,
    "Glm4vForConditionalGeneration": _DENSE,
    "Glm5NextForCausalLM": _SPARSE,
    "Glm5NextForConditionalGeneration": _SPARSE,
    "GlmOcrForConditionalGeneration": _DENSE,
    "HfMoondream": _REFUSED,
    "InklingForCausalLM": _REFUSED,
    "InklingForConditionalGeneration": _REFUSED,
    "InternS1ProForConditionalGeneration": _LANGUAGE,
    "InternS2MobiusForConditionalGeneration": _LANGUAGE,
    "InternS2PreviewForConditionalGeneration": _LANGUAGE,
    "K2HorizonForCausalLM": "its configuration was not made up",
    "KimiK25ForConditionalGeneration": _LATENT,
    "KimiK3ForConditionalGeneration": _STATES,
    "KimiVLForConditionalGeneration": _LATENT,
    "MiMoV2OmniForCausalLM": _REFUSED,
    "MiniCPM3ForCausalLM": _DENSE,
    "MiniCPMOcrForConditionalGeneration": _NEW,
    "MiniCPMV": _DENSE,
    "MiniCPMV4_6ForConditionalGeneration": _DENSE,
    "MiniCPMV4_7ForConditionalGeneration": _DENSE,
    "MiniMaxM3SparseForCausalLM": _REFUSED,
    "MiniMaxM3SparseForConditionalGeneration": _REFUSED,
    "Moondream3ForCausalLM": _REFUSED,
    "MuseSparkForConditionalGeneration": _NEW,
    "NemotronH_Nano_Omni_Reasoning_V3": _STATES,
    "NemotronH_Nano_VL_V2": _STATES,
    "NemotronH_Omni_Reasoning_V3": _STATES,
    "NemotronH_Super_Omni_Reasoning_V3": _STATES,
    "OpenPanguVLForConditionalGeneration": _DENSE,
    "PanguEmbeddedForCausalLM": _DENSE,
    "Qwen3_5ForCausalLM": _DENSE,
    "Qwen3_5ForConditionalGeneration": _DENSE,
    "Qwen4ExpForCausalLM": _STATES,
    "Qwen4ExpForConditionalGeneration": _STATES,
    "Step5ForCausalLM": _NEW,
    "Step5ForConditionalGeneration": _NEW,
}
