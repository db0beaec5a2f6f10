# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that the device port needs in releases without a hook for it. Imports neither torch nor vLLM.

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
)
