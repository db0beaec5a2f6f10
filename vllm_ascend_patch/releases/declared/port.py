# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that the device port needs where vLLM has no hook for it. Imports neither torch nor vLLM.

What they do is in ``seams/port/``.
"""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        id="slot-mapping",
        target="vllm.v1.worker.block_table:BlockTable.compute_slot_mapping",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.port.block_table:compute_slot_mapping",
        reads=("num_reqs", "query_start_loc", "positions"),
        releases=">=0.19,<0.31",
        why="The slot mapping is a Triton kernel, which an out-of-tree device lacks.",
        how="The same mapping in torch operators.",
        upstream="vllm.triton_utils.dispatcher, from 0.31 on",
        remove_when="the releases without the kernel registry are no longer supported",
    ),
    Patch(
        id="expert-batches",
        target="vllm.config.parallel:ParallelConfig.use_batched_dp_moe",
        kind=Kind.REPLACE,
        implementation="vllm_ascend_patch.seams.port.expert_batches:use_batched_dp_moe",
        releases=">=0.20",
        why="For some values of --all2all-backend, which is not used here, vLLM cuts a step to 256 tokens.",
        how="Answers no: vLLM asks while it works out its defaults, before a platform sees the configuration.",
        upstream="none: the answer depends on the option alone",
        remove_when="vLLM asks the platform for the tokens of a step",
    ),
    Patch(
        id="loaded-weights",
        target="vllm.model_executor.model_loader.default_loader:DefaultModelLoader.load_weights",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.port.loading:load_weights",
        reads=("model", "model_config"),
        why="vLLM's check of what was loaded leaves out linear layers and embeddings: noise is served where one is missing.",
        how="Marks the first row of each tensor before the checkpoint is read, and refuses it where a mark is left.",
        upstream="none: the check spares every layer whose method processes weights after loading, which these do on CPUs",
        remove_when="vLLM checks the parameters of layers without quantisation",
    ),
    Patch(
        id="linear-w4a16",
        target="vllm.model_executor.layers.quantization.compressed_tensors.schemes."
        "compressed_tensors_wNa16:CompressedTensorsWNA16.create_weights",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.port.packed_weights:create_weights",
        reads=("layer", "weight_loader"),
        releases=">=0.32",
        why="A checkpoint's int4 are not the operator's, and a kernel of vLLM's sees parameters after they were loaded.",
        how="Gives the parameters a loader that turns the four bits, and scales the operator's order in memory.",
        upstream="none: kernels rewrite parameters once, which a tensor that is loaded later would undo",
        remove_when="vLLM lets a kernel take part in loading",
    ),
)
