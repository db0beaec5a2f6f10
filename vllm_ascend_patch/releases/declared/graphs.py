# SPDX-License-Identifier: Apache-2.0
"""Declares the patch that captured graphs need. Imports neither torch nor vLLM; what it does is in ``seams/port/``."""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

GRAPH_CAPTURE = Patch(
    id="graph-capture",
    target="vllm.distributed.parallel_state:GroupCoordinator.graph_capture",
    kind=Kind.WRAP,
    implementation="vllm_ascend_patch.seams.port.graph_capture:graph_capture",
    releases=">=0.10.1",
    why="Upstream asserts that a group on a captured stream has CUDA's or XPU's communicator.",
    how="The group counts as one without a device communicator while the context is entered.",
    upstream="none: the assertion names two classes",
    remove_when="vLLM asks the communicator instead of its class",
)
"""Releases for which it is not declared run without graphs (``releases/graphs.py``): they have no graph modes."""

PATCHES: tuple[Patch, ...] = (GRAPH_CAPTURE,)
