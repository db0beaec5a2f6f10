# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of vLLM that this port brings in torch operators, given to vLLM's own registry of kernel
overrides.

An out-of-tree device has no Triton. The functions themselves are in ``core/kernels/``; their parameters have the names
of the upstream kernels', so that they are bound by name.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vllm.logger import init_logger

from vllm_ascend_patch.core.kernels import (
    drafter_inputs,
    drafts,
    logprobs,
    one_token_each,
    rejection,
    request_tables,
    sampling,
    step_inputs,
    verification,
)
from vllm_ascend_patch.core.kernels.slot_mapping import compute_slot_mapping
from vllm_ascend_patch.releases import guard, runner
from vllm_ascend_patch.seams import serving

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

_V2 = "vllm.v1.worker.gpu"
_GUMBEL = f"{_V2}.sample.gumbel"


@cache
def step_in_seed() -> bool:
    """Whether drafters of this vLLM draw other noise for a position in each of their steps."""
    return hasattr(import_module(_GUMBEL), "spec_step_seed")


def _gumbel_sample(**arguments: Any) -> None:
    sampling.gumbel_sample(STEP_IN_SEED=step_in_seed(), **arguments)


def _by_step(function: Callable[..., None]) -> Callable[..., None]:
    """``function``, or its namesake for steps in which every request decodes one token."""
    short = getattr(one_token_each, function.__name__)

    def launched(**arguments: Any) -> None:
        (short if serving.current().step.one_token_each else function)(**arguments)

    return launched


_book = _by_step(step_inputs.post_update)


def _post_update(**arguments: Any) -> None:
    """Tokens are counted where a request of the step is penalised for them: nobody reads the counts of others, and a
    request's begin anew when it is added."""
    if not serving.current().step.penalties:
        arguments["output_bin_counts_ptr"] = None
    _book(**arguments)


RUNNER_V2: dict[str, Callable[..., None]] = {
    f"{_V2}.buffer_utils._apply_write_kernel": request_tables.apply_write,
    f"{_V2}.block_table._gather_block_tables_kernel": request_tables.gather_block_tables,
    f"{_V2}.block_table._compute_slot_mappings_kernel": _by_step(request_tables.compute_slot_mappings),
    f"{_V2}.input_batch._prepare_prefill_inputs_kernel": step_inputs.prepare_prefill_inputs,
    f"{_V2}.input_batch._prepare_pos_seq_lens_kernel": _by_step(step_inputs.prepare_pos_seq_lens),
    f"{_V2}.input_batch._combine_sampled_and_draft_tokens_kernel": _by_step(
        step_inputs.combine_sampled_and_draft_tokens
    ),
    f"{_V2}.input_batch._get_num_sampled_and_rejected_kernel": _by_step(step_inputs.get_num_sampled_and_rejected),
    f"{_V2}.input_batch._post_update_kernel": _post_update,
    f"{_GUMBEL}._gumbel_sample_kernel": _gumbel_sample,
    f"{_GUMBEL}._temperature_kernel": sampling.temperature,
    f"{_V2}.sample.min_p._min_p_kernel": sampling.min_p,
    f"{_V2}.sample.penalties._penalties_kernel": sampling.penalties,
    f"{_V2}.sample.penalties._bincount_kernel": sampling.bincount,
    f"{_V2}.sample.logit_bias._bias_kernel": sampling.bias,
    f"{_V2}.sample.bad_words._bad_words_kernel": sampling.bad_words,
    f"{_V2}.structured_outputs._apply_grammar_bitmask_kernel": sampling.apply_grammar_bitmask,
    f"{_V2}.sample.logprob._topk_log_softmax_kernel": logprobs.topk_log_softmax,
    f"{_V2}.sample.logprob._ranks_kernel": logprobs.ranks,
    f"{_V2}.sample.logprob._fill_logprob_token_ids_kernel": logprobs.fill_logprob_token_ids,
    f"{_V2}.sample.prompt_logprob._prompt_logprobs_token_ids_kernel": logprobs.prompt_logprobs_token_ids,
}
"""What model runner V2 launches without drafts; ``runner_check.py`` refuses what else would."""


def _greedily(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with what the host knows of the requests and the kernel's arguments do not say."""

    def launched(**arguments: Any) -> None:
        function(ALL_GREEDY=serving.current().step.greedy, **arguments)

    return launched


_REJECTION_V2 = f"{_V2}.spec_decode.rejection_sampler"
_DRAFTER = f"{_V2}.spec_decode.target_dependent_ar.speculator"
_NGRAM = f"{_V2}.spec_decode.ngram.speculator"
SPECULATIVE_V2: dict[str, Callable[..., None]] = {
    f"{_V2}.input_batch._expand_idx_mapping_kernel": step_inputs.expand_idx_mapping,
    f"{_REJECTION_V2}._gather_draft_sampled_kernel": verification.gather_draft_sampled,
    f"{_REJECTION_V2}._flatten_sampled_kernel": verification.flatten_sampled,
    f"{_REJECTION_V2}_utils._compute_local_logits_stats_kernel": verification.compute_local_logits_stats,
    f"{_REJECTION_V2}_utils._rejection_kernel": _greedily(verification.reject),
    f"{_REJECTION_V2}_utils._resample_kernel": _greedily(verification.resample),
    f"{_REJECTION_V2}_utils._insert_resampled_kernel": verification.insert_resampled,
    f"{_DRAFTER}._prepare_prefill_inputs_kernel": drafter_inputs.prepare_prefill_inputs,
    f"{_DRAFTER}._prepare_decode_inputs_kernel": drafter_inputs.prepare_decode_inputs,
    f"{_DRAFTER}._update_draft_inputs_kernel": drafter_inputs.update_draft_inputs,
    f"{_NGRAM}._ngram_scan_kernel": drafter_inputs.scan_for_ngrams,
    f"{_NGRAM}._ngram_finalize_kernel": drafter_inputs.draft_from_ngrams,
}
"""What it launches besides with drafts."""


def registry_exists() -> bool:
    """Whether the installed vLLM lets a platform replace its Triton kernels (from 0.31 on)."""
    return find_spec("vllm.triton_utils") is not None and find_spec(_REGISTRY) is not None


def register() -> None:
    """Give vLLM the overrides of the model runner that serves; called by vLLM while it is built."""
    from vllm.triton_utils.dispatcher import register_kernels

    v1 = runner.choose(guard.installed_release(), guard.has_runner_v1()).name == "V1"
    needed, speculative = (NEEDED, SPECULATIVE) if v1 else (RUNNER_V2, SPECULATIVE_V2)
    overrides = {name: _bound_by_name(_find(name), function) for name, function in needed.items()}
    missing = []
    for name, function in speculative.items():
        try:
            overrides[name] = _bound_by_name(_find(name), function)
        except (ImportError, AttributeError):
            missing.append(name)
    if missing:
        logger.warning(
            "Ascend NPU: this vLLM has no kernel %s; speculative decoding will fail where it needs what replaced it.",
            ", ".join(missing),
        )
    with _without_modules_that_cannot_be_searched():
        register_kernels(overrides)


@contextmanager
def _without_modules_that_cannot_be_searched() -> Iterator[None]:
    """vLLM looks for copies of its kernels in whatever any module holds, and ends where something has no namespace behind
    ``__dict__``, as the library object of llvmlite, which numba imports. Such a module holds none of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of whoever looks at its old names
        hidden = {
            name: module
            for name, module in list(sys.modules.items())
            if not all(map(_can_be_searched, _values(module)))
        }
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(hidden)


def _values(module: Any) -> list[Any]:
    return list((getattr(module, "__dict__", None) or {}).values())


def _can_be_searched(value: Any) -> bool:
    return not hasattr(value, "__dict__") or isinstance(vars(value), Mapping)


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
