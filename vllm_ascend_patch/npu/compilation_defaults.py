# SPDX-License-Identifier: Apache-2.0
"""Decides how a model is compiled and what is captured into graphs: upstream's pieces, each run by torch, between them eager
attention; whole decode steps; and how many sizes of either.

A value that the user gave is kept where it can work; what is changed is said in the log, once.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.logger import init_logger
from vllm.platforms.interface import Platform

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.graph_streams import DEVICE_STREAMS, GraphKinds, sizes_within
from vllm_ascend_patch.core.moe.comm import METHODS
from vllm_ascend_patch.core.moe.model_facts import has_experts
from vllm_ascend_patch.seams.config import uses_runner_v2

from .attention.layout import BLOCK_SIZE

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

_BACKEND = "eager"
_AHEAD_OF_TIME = "VLLM_USE_AOT_COMPILE"
"""Upstream's variable. With its default, and torch from 2.10 on, each forward of a model with that backend hashes the whole
configuration, which takes milliseconds, to look for an artifact that this backend never writes."""


@cache
def graph_obstacle() -> str | None:
    """Why the installed vLLM runs without graphs here, in words; None if nothing is in the way."""
    from vllm_ascend_patch.releases import graphs, guard

    release = guard.installed_release()
    return "the release of vLLM is unknown" if release is None else graphs.graph_obstacle(release)


def graphs_supported() -> bool:
    """Whether graphs are captured on the installed vLLM."""
    return graph_obstacle() is None


def apply(vllm_config: VllmConfig) -> None:
    """Change ``vllm_config.compilation_config`` in place; idempotent."""
    obstacle = graph_obstacle()
    if obstacle is not None:
        _run_eager(vllm_config, obstacle)
        return
    obstacle = _drafts_obstacle(vllm_config)
    if obstacle is not None:
        _run_eager(vllm_config, obstacle)
    elif getattr(vllm_config.model_config, "is_hybrid", False):
        _run_eager(vllm_config, "layers that keep a state were not tried with graphs")
    else:
        _run_pieces(vllm_config)
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode.name == "NONE":
        if hasattr(compilation, "max_cudagraph_capture_size"):
            compilation.max_cudagraph_capture_size = 0
        compilation.cudagraph_capture_sizes = []
    else:
        _keep_within_streams(vllm_config)


def _run_pieces(vllm_config: VllmConfig) -> None:
    """Compiled in pieces, with graphs of them, unless the user or the communication method wants less."""
    from vllm.config import CUDAGraphMode

    compilation, levels = vllm_config.compilation_config, _levels()
    if not _asks_for_graph_support():
        _capture_as_upstream(vllm_config)
    if getattr(compilation, levels.field) == levels.none:
        _change(compilation, "cudagraph_mode", CUDAGraphMode.NONE, "the model is not compiled")
    else:
        why = "graphs are captured between the attention operators of a model that vLLM splits there"
        _change(compilation, levels.field, levels.pieces, why)
        why = "stock torch has no Inductor for NPUs"
        if levels.field == "level":  # there, the backend is another level's
            _change(compilation, "use_inductor", False, why)
        else:
            _change(compilation, "backend", _BACKEND, why)
            _change(compilation, "use_inductor_graph_partition", False, why)
            os.environ[_AHEAD_OF_TIME] = "0"
        _no_fusions(compilation.pass_config)
    _capture_whole_steps(vllm_config)
    forced = METHODS.get(envs.VLLM_ASCEND_PATCH_MOE_COMM)
    if forced is not None and not forced.capturable and _is_moe(vllm_config):
        variable = f"VLLM_ASCEND_PATCH_MOE_COMM={envs.VLLM_ASCEND_PATCH_MOE_COMM}"
        why = f"{variable} reads sizes from the device, which no graph can capture"
        _change(compilation, "cudagraph_mode", CUDAGraphMode.NONE, why, logger.warning)


def _capture_whole_steps(vllm_config: VllmConfig) -> None:
    """Graphs of whole decode steps where they can be had, else pieces."""
    from vllm.config import CUDAGraphMode

    compilation = vllm_config.compilation_config
    if not compilation.cudagraph_mode.has_full_cudagraphs():
        return
    obstacle = _full_graph_obstacle(vllm_config)
    if obstacle is not None:
        _change(compilation, "cudagraph_mode", CUDAGraphMode.PIECEWISE, obstacle)
    elif compilation.cudagraph_mode.name == "FULL":
        why = "only steps whose requests all have the same number of tokens are captured whole"
        _change(compilation, "cudagraph_mode", CUDAGraphMode.FULL_AND_PIECEWISE, why)


def _drafts_obstacle(vllm_config: VllmConfig) -> str | None:
    """Why a model whose tokens are drafted runs without graphs, in words; None if nothing is in the way."""
    if vllm_config.speculative_config is None:
        return None
    obstacle = _full_graph_obstacle(vllm_config)
    return None if obstacle is None else f"drafts were not tried with graphs where {obstacle}"


def _full_graph_obstacle(vllm_config: VllmConfig) -> str | None:
    """Why no graph holds attention, in words; None if nothing is in the way."""
    from vllm_ascend_patch.releases import graphs, guard

    if uses_runner_v2(vllm_config) and vllm_config.speculative_config is not None:
        return "graphs were not tried with drafts on model runner V2"
    model = vllm_config.model_config
    return graphs.full_graph_obstacle(guard.installed_release() or "", model is not None and model.use_mla)


def _keep_within_streams(vllm_config: VllmConfig) -> None:
    """Capture no more sizes than a device has streams for (``core/graph_streams.py``)."""
    compilation, parallel, model = vllm_config.compilation_config, vllm_config.parallel_config, vllm_config.model_config
    if model is None or hasattr(compilation, "bs_to_padded_graph_size"):  # there, sizes have been used by now
        return
    mode, speculative = compilation.cudagraph_mode, vllm_config.speculative_config
    drafts = 0 if speculative is None else speculative.num_speculative_tokens or 0
    decoded = vllm_config.scheduler_config.max_num_seqs * (1 + drafts)
    layers = model.get_num_layers(parallel)
    tensor, data = parallel.tensor_parallel_size, parallel.data_parallel_size
    kinds = GraphKinds(
        pieces=layers + 1 + _drafter_pieces(vllm_config) if mode.name != "FULL_DECODE_ONLY" else 0,
        largest_whole=min(BLOCK_SIZE, decoded) if mode.has_full_cudagraphs() else 0,
        communicators=sum(size > 1 for size in (tensor, data, tensor * data if parallel.enable_expert_parallel else 1)),
    )
    sizes = list(compilation.cudagraph_capture_sizes or ())
    kept = sizes_within(sizes, kinds)
    if len(kept) == len(sizes):
        return
    logger.warning(
        "Ascend NPU: graphs are captured for %d of %d batch sizes (%s): with %d layers all of them would take %d of a "
        "device's %d streams. A step is padded to the next of these sizes; name sizes of your own in compilation_config's "
        "cudagraph_capture_sizes, or capture whole decode steps only with cudagraph_mode FULL_DECODE_ONLY.",
        len(kept),
        len(sizes),
        ", ".join(map(str, kept)),
        layers,
        kinds.streams(sizes),
        DEVICE_STREAMS,
    )
    compilation.cudagraph_capture_sizes = kept


def _drafter_pieces(vllm_config: VllmConfig) -> int:
    """Graphs per size of a drafter with forwards of its own, of which upstream captures pieces alone."""
    model = getattr(vllm_config.speculative_config, "draft_model_config", None)
    if model is None:
        return 0
    # Layers that predict further tokens do not count as layers in the configuration; one of them runs again and again.
    return max(1, model.get_num_layers(vllm_config.parallel_config)) + 1


def _run_eager(vllm_config: VllmConfig, why: str) -> None:
    """What was not tried with graphs: the model runs as it is written."""
    import vllm.config as upstream

    compilation, levels = vllm_config.compilation_config, _levels()
    _change(compilation, levels.field, levels.none, why)
    if levels.field == "level" and vllm_config.model_config is not None:
        # Otherwise these releases pad data-parallel ranks to one size, as if graphs were captured.
        vllm_config.model_config.enforce_eager = True
    if hasattr(compilation, "cudagraph_mode"):
        _change(compilation, "cudagraph_mode", upstream.CUDAGraphMode.NONE, why)
    else:
        compilation.use_cudagraph = False
    if compilation.compile_sizes is None:
        compilation.compile_sizes = []


class _Levels(NamedTuple):
    """The field that says how far a model is compiled, and its values for not at all and for in pieces."""

    field: str
    none: Any
    pieces: Any


@cache
def _levels() -> _Levels:
    import vllm.config as upstream

    if hasattr(upstream, "CompilationMode"):
        return _Levels("mode", upstream.CompilationMode.NONE, upstream.CompilationMode.VLLM_COMPILE)
    levels = upstream.CompilationLevel
    return _Levels("level", levels.NO_COMPILATION, levels.PIECEWISE)


def _asks_for_graph_support() -> bool:
    """Whether upstream has asked the platform before it set the graph mode; else only its own devices get one."""
    return hasattr(Platform, "support_static_graph_mode")


def _capture_as_upstream(vllm_config: VllmConfig) -> None:
    """What upstream sets on its own devices; a mode that the user gave is lost by then, but for ``use_cudagraph``."""
    from vllm.config import CUDAGraphMode

    compilation = vllm_config.compilation_config
    eager = vllm_config.model_config is not None and vllm_config.model_config.enforce_eager
    wanted = getattr(compilation, _levels().field) == _levels().pieces and compilation.use_cudagraph and not eager
    compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE if wanted else CUDAGraphMode.NONE
    compilation.cudagraph_num_of_warmups = 1
    vllm_config._set_cudagraph_sizes()


def _no_fusions(passes: Any) -> None:
    """Upstream's defaults include fusions, which are passes of Inductor and exist for its own devices only."""
    for name in vars(passes):
        if (name.startswith("fuse_") or name.endswith("_fusion")) and getattr(passes, name) is True:
            setattr(passes, name, False)


def _is_moe(vllm_config: VllmConfig) -> bool:
    model = vllm_config.model_config
    return model is not None and has_experts(model.hf_config.to_dict())


def _change(compilation: Any, field: str, value: Any, why: str, log: Any = logger.info) -> None:
    found = getattr(compilation, field)
    if found not in (None, value):
        log("Ascend NPU: %s is %s instead of %s: %s.", field, _shown(value), _shown(found), why)
    setattr(compilation, field, value)


def _shown(value: Any) -> Any:
    return getattr(value, "name", value)
