# SPDX-License-Identifier: Apache-2.0
"""Decides how a model is compiled and what is captured into graphs: upstream's pieces, each run by torch, between them eager
attention.

A value that the user gave is kept where it can work; what is changed is said in the log, once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_ascend_patch import envs

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

_BACKEND = "eager"


@cache
def graphs_supported() -> bool:
    """Whether graphs are captured on the installed vLLM: where the patch that allows it is declared for the release."""
    from vllm_ascend_patch.seams import examination, records
    from vllm_ascend_patch.seams.graph_patches import GRAPH_CAPTURE

    release = examination.installed_release()
    return release is not None and records.covers(GRAPH_CAPTURE, release)


def apply(vllm_config: VllmConfig) -> None:
    """Change ``vllm_config.compilation_config`` in place; idempotent."""
    if not graphs_supported():
        _run_eager(vllm_config, "on this release of vLLM the port runs eager")
        return
    if vllm_config.speculative_config is not None:
        _run_eager(vllm_config, "models with drafters were not tried with graphs")
    else:
        _run_pieces(vllm_config)
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode.name == "NONE":
        compilation.max_cudagraph_capture_size = 0
        compilation.cudagraph_capture_sizes = []


def _run_pieces(vllm_config: VllmConfig) -> None:
    """Compiled in pieces, with graphs of them, unless the user or the communication method wants less."""
    from vllm.config import CompilationMode, CUDAGraphMode

    compilation = vllm_config.compilation_config
    if compilation.mode == CompilationMode.NONE:
        _change(compilation, "cudagraph_mode", CUDAGraphMode.NONE, "the model is not compiled")
    else:
        why = "graphs are captured between the attention operators of a model that vLLM splits there"
        _change(compilation, "mode", CompilationMode.VLLM_COMPILE, why)
        _change(compilation, "backend", _BACKEND, "stock torch has no Inductor for NPUs")
        _change(compilation, "use_inductor_graph_partition", False, "stock torch has no Inductor for NPUs")
        _no_fusions(compilation.pass_config)
    if compilation.cudagraph_mode.has_full_cudagraphs():
        why = "attention takes its lengths from the host, so it runs between graphs"
        _change(compilation, "cudagraph_mode", CUDAGraphMode.PIECEWISE, why)
    if envs.VLLM_ASCEND_PATCH_MOE_COMM == "alltoall" and _is_moe(vllm_config):
        why = "VLLM_ASCEND_PATCH_MOE_COMM=alltoall reads sizes from the device, which no graph can capture"
        _change(compilation, "cudagraph_mode", CUDAGraphMode.NONE, why, logger.warning)


def _run_eager(vllm_config: VllmConfig, why: str) -> None:
    """What was not tried with graphs: the model runs as it is written."""
    import vllm.config as upstream

    compilation = vllm_config.compilation_config
    if hasattr(upstream, "CompilationMode"):
        _change(compilation, "mode", upstream.CompilationMode.NONE, why)
    else:
        _change(compilation, "level", upstream.CompilationLevel.NO_COMPILATION, why)
        if vllm_config.model_config is not None:
            # Otherwise these releases pad data-parallel ranks to one size, as if graphs were captured.
            vllm_config.model_config.enforce_eager = True
    if hasattr(compilation, "cudagraph_mode"):
        _change(compilation, "cudagraph_mode", upstream.CUDAGraphMode.NONE, why)
    else:
        compilation.use_cudagraph = False
    if compilation.compile_sizes is None:
        compilation.compile_sizes = []


def _no_fusions(passes: Any) -> None:
    """Upstream's defaults include fusions, which are passes of Inductor and exist for its own devices only."""
    for name in vars(passes):
        if (name.startswith("fuse_") or name.endswith("_fusion")) and getattr(passes, name) is True:
            setattr(passes, name, False)


def _is_moe(vllm_config: VllmConfig) -> bool:
    return vllm_config.model_config is not None and vllm_config.model_config.is_moe


def _change(compilation: Any, field: str, value: Any, why: str, log: Any = logger.info) -> None:
    found = getattr(compilation, field)
    if found not in (None, value):
        log("Ascend NPU: %s is %s instead of %s: %s.", field, _shown(value), _shown(found), why)
    setattr(compilation, field, value)


def _shown(value: Any) -> Any:
    return getattr(value, "name", value)
