# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of vLLM that this port brings in torch operators, given to vLLM's own registry of kernel overrides.

An out-of-tree device has no Triton. The functions themselves are in ``slot_mapping.py``, ``rejection.py`` and
``drafts.py``; their parameters have the names of the upstream kernels', so that they are bound by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vllm.logger import init_logger

from vllm_ascend_patch.core.kernels import drafts, rejection
from vllm_ascend_patch.core.kernels.slot_mapping import compute_slot_mapping

logger = init_logger(__name__)

_REGISTRY = "vllm.triton_utils.dispatcher"
_REJECTION = "vllm.v1.sample.rejection_sampler"
_DRAFT = "vllm.v1.spec_decode.utils"

NEEDED: dict[str, Callable[..., None]] = {
    "vllm.v1.worker.block_table.ComputeSlotMappingKernel.kernel": compute_slot_mapping
}
SPECULATIVE: dict[str, Callable[..., None]] = {
    f"{_REJECTION}.rejection_greedy_sample_kernel": rejection.rejection_greedy_sample,
    f"{_REJECTION}.rejection_random_sample_kernel": rejection.rejection_random_sample,
    f"{_REJECTION}.expand_kernel": rejection.expand,
    f"{_REJECTION}.sample_recovered_tokens_kernel": rejection.sample_recovered_tokens,
    f"{_DRAFT}.eagle_step_slot_mapping_metadata_kernel": drafts.eagle_step_slot_mapping_metadata,
    f"{_DRAFT}.eagle_prepare_inputs_padded_kernel": drafts.eagle_prepare_inputs_padded,
    f"{_DRAFT}.eagle_prepare_next_token_padded_kernel": drafts.eagle_prepare_next_token_padded,
}


def registry_exists() -> bool:
    """Whether the installed vLLM lets a platform replace its Triton kernels (from 0.31 on)."""
    return find_spec("vllm.triton_utils") is not None and find_spec(_REGISTRY) is not None


def register() -> None:
    """Give vLLM the overrides; called by vLLM while a model runner is built."""
    from vllm.triton_utils.dispatcher import register_kernels

    overrides = {name: _bound_by_name(_find(name), function) for name, function in NEEDED.items()}
    missing = []
    for name, function in SPECULATIVE.items():
        try:
            overrides[name] = _bound_by_name(_find(name), function)
        except (ImportError, AttributeError):
            missing.append(name)
    if missing:
        logger.warning(
            "Ascend NPU: this vLLM has no kernel %s; speculative decoding will fail where it needs what replaced it.",
            ", ".join(missing),
        )
    register_kernels(overrides)


def _find(name: str) -> Any:
    """The kernel of that dotted name: ``module.kernel`` or ``module.Class.kernel``."""
    owner, _, attribute = name.rpartition(".")
    module, _, class_name = owner.rpartition(".")
    if class_name[:1].isupper():
        return getattr(getattr(import_module(module), class_name), attribute)
    return getattr(import_module(owner), attribute)


def _bound_by_name(kernel: Any, function: Callable[..., None]) -> Callable[..., None]:
    """``function`` for launches that pass the release's kernel arguments in the kernel's order."""
    names = getattr(kernel, "arg_names", None) or tuple(inspect.signature(getattr(kernel, "func", kernel)).parameters)

    def launched(*args: Any, **kwargs: Any) -> None:
        function(**dict(zip(names, args, strict=False)), **kwargs)

    return launched
