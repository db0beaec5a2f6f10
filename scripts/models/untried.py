# SPDX-License-Identifier: Apache-2.0
"""Why architectures of vLLM's registry have no tiny model here. One that is not named here is simply new."""

from __future__ import annotations

_LANGUAGE = "takes images, too; of its language model nothing was tried"
_REFUSED = "a start refuses its architecture by name; no tiny model was made"
_SPARSE = "sparse attention or compressed caches of its own, on kernels of its own; no tiny model was made"
_DENSE = "dense as published; vLLM's class shares code with a family that has experts"
_STATES = "layers that keep a state, refused by a start; no tiny model was made"
_NEW = "of vLLM 0.33; models are run on 0.32.0"

UNTRIED: dict[str, str] = {
    "AliceAIForCausalLM": _NEW,
    "BailingMoeV3ForCausalLM": _STATES,
    "BeamForCausalLM": _NEW,
    "Cosmos3EdgeForConditionalGeneration": _LANGUAGE,
    "DeepseekV4ForConditionalGeneration": _SPARSE,
    "Dots3NoteForCausalLM": _SPARSE,
    "Ernie4_5_VLMoeForConditionalGeneration": _LANGUAGE,
    "FlintForCausalLM": _NEW,
    "Gemma4UnifiedForConditionalGeneration": _DENSE,
    "Glm4vForConditionalGeneration": _DENSE,
    "GlmOcrForConditionalGeneration": _DENSE,
    "HfMoondream": _REFUSED,
    "InternS1ProForConditionalGeneration": _LANGUAGE,
    "InternS2MobiusForConditionalGeneration": _LANGUAGE,
    "InternS2PreviewForConditionalGeneration": _LANGUAGE,
    "K2HorizonForCausalLM": "its configuration was not made up",
    "MiMoV2OmniForCausalLM": _REFUSED,
    "MiniCPM3ForCausalLM": _DENSE,
    "MiniCPMOcrForConditionalGeneration": _NEW,
    "MiniCPMV": _DENSE,
    "MiniCPMV4_6ForConditionalGeneration": _DENSE,
    "MiniCPMV4_7ForConditionalGeneration": _DENSE,
    "MiniMaxM3SparseForCausalLM": _REFUSED,
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
    "Step5ForCausalLM": _NEW,
    "Step5ForConditionalGeneration": _NEW,
}
