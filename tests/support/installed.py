# SPDX-License-Identifier: Apache-2.0
"""What the installed vLLM has, asked of its files: importing vLLM in the test process would choose its platform."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_ascend_patch.releases.drafts import asynchronous_obstacle
from vllm_ascend_patch.releases.graphs import full_graph_obstacle
from vllm_ascend_patch.releases.guard import installed_release
from vllm_ascend_patch.releases.modelslim import modelslim_obstacle


def vllm_file(*parts: str) -> Path:
    """Path of a file of the installed vLLM, which may not exist."""
    spec = find_spec("vllm")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path("no-vllm-here")
    return folder.joinpath(*parts)


needs_vllm = pytest.mark.skipif(not vllm_file("__init__.py").exists(), reason="vLLM is not installed")
HAS_KERNEL_REGISTRY = vllm_file("triton_utils", "dispatcher.py").exists()
HAS_ONE_COORDINATION = vllm_file("v1", "worker", "dp_utils.py").exists()
FULL_GRAPHS_BY_DEFAULT = HAS_ONE_COORDINATION
HAS_GRAPHS_OF_WHOLE_STEPS = full_graph_obstacle(installed_release() or "") is None

needs_kernel_registry = pytest.mark.skipif(
    not HAS_KERNEL_REGISTRY,
    reason="this vLLM takes no kernels from a platform: speculative decoding is refused, as test_refusals.py shows",
)
HAS_ASYNCHRONOUS_DRAFTS = asynchronous_obstacle(installed_release() or "", runner_v2=False) is None
needs_asynchronous_drafts = pytest.mark.skipif(
    not HAS_ASYNCHRONOUS_DRAFTS,
    reason="drafts are scheduled in turn with this vLLM, if they are served at all; the log says so",
)
needs_one_coordination = pytest.mark.skipif(
    not HAS_ONE_COORDINATION,
    reason="the ranks of this vLLM tell each other token counts alone: no graph mode, no drafters to get wrong",
)
HAS_INT8_EXPERTS = vllm_file(
    "model_executor/layers/quantization/compressed_tensors/compressed_tensors_moe/compressed_tensors_moe_w8a8_int8.py"
).exists()
needs_int8_experts = pytest.mark.skipif(
    not HAS_INT8_EXPERTS,
    reason="this vLLM keeps its int8 experts elsewhere: of what is quantised, the matrix alone runs on it",
)
_LATENT = vllm_file("model_executor", "layers", "attention", "mla_attention.py")
HAS_LATENT_ATTENTION = _LATENT.exists() and "def unified_mla_kv_cache_update" in _LATENT.read_text()
needs_latent_attention = pytest.mark.skipif(
    not HAS_LATENT_ATTENTION,
    reason="this vLLM's layer of latent attention writes the cache itself: refused, as test_config_refusals.py shows",
)
HAS_MODELSLIM = modelslim_obstacle(installed_release() or "0") is None
needs_modelslim = pytest.mark.skipif(
    not HAS_MODELSLIM,
    reason="ModelSlim checkpoints were run on newer releases, and are refused here, as test_config_refusals.py shows",
)
_CONFIG = vllm_file("config", "vllm.py")
needs_runner_v2 = pytest.mark.skipif(
    not vllm_file("v1", "worker", "gpu", "input_batch.py").exists()
    or "_validate_v2_model_runner" not in _CONFIG.read_text(),
    reason="model runner V2 is not served on this vLLM: refused, as test_plugin.py shows",
)
needs_transformers_5 = pytest.mark.skipif(
    int(version("transformers").partition(".")[0]) < 5,
    reason="the table of models is made on the default line, with transformers 5; older ones lack most families",
)
