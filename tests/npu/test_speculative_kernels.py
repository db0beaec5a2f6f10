# SPDX-License-Identifier: Apache-2.0
"""The torch versions of vLLM's speculative kernels write what the bodies of vLLM's own Triton kernels write, on random
batches: requests without drafts, padded drafts, greedy and sampling requests, draft probabilities or none."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.support.installed import needs_kernel_registry
from tests.support.processes import result_of, under_virtual_npu
from vllm_ascend_patch.core.kernels import drafts, rejection

from .kernel_interpreter import Kernel

pytestmark = needs_kernel_registry

SEEDS = range(15)
VOCABULARY = 11
REJECTION = "vllm.v1.sample.rejection_sampler"
DRAFT = "vllm.v1.spec_decode.utils"
TABLES = ("synthetic_conditional_rates_ptr",)  # one value per draft position, not a list of requests or drafts


def compare(kernel: str, grid: tuple[int, ...], ours: Any, arguments: dict[str, Any], outputs: tuple[str, ...]) -> None:
    """Run both on copies; all outputs must be equal, those that are only partly written included.

    Ours once more with every list as a column: to upstream's kernels, which see addresses, that is the same.
    """

    def copies(column: bool = False) -> dict[str, Any]:
        tensors = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        if column:
            tensors = {k: v.unsqueeze(1) if v.dim() == 1 and k not in TABLES else v for k, v in tensors.items()}
        return {**arguments, **tensors}

    theirs, mine, columns = copies(), copies(), copies(column=True)
    Kernel(kernel).run(grid, **theirs)
    ours(**mine)
    ours(**columns)
    for name in outputs:
        assert torch.equal(theirs[name], mine[name]), f"{name}: {mine[name]} instead of {theirs[name]}"
        assert torch.equal(mine[name].flatten(), columns[name].flatten()), f"{name} of columns: {columns[name]}"


class Drafts:
    """A random batch of drafts."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        rng = random.Random(seed)
        self.width = rng.randint(0, 4)
        self.counts = [rng.randint(0, self.width) for _ in range(rng.randint(1, 5))]
        self.counts[rng.randrange(len(self.counts))] = self.width
        self.requests, self.total = len(self.counts), sum(self.counts)
        self.ends = torch.tensor(self.counts, dtype=torch.int32).cumsum(0).to(torch.int32)
        self.ids = torch.randint(0, 3, (self.total,), dtype=torch.int32)
        self.ids[torch.rand(self.total) < 0.1] = -1
        self.output = torch.full((self.requests, self.width + 1), -1, dtype=torch.int32)
        self.bonus = torch.randint(0, VOCABULARY, (self.requests, 1))
        self.greedy = torch.rand(self.requests) < 0.5
        self.uniform = torch.rand(self.total, dtype=torch.float64)
        self.rates = torch.rand(self.width)
        self.target = torch.rand(self.total, VOCABULARY).pow(4).softmax(-1)
        self.drafted = torch.rand(self.total, VOCABULARY).pow(4).softmax(-1)
        self.drafted[torch.rand(self.total, VOCABULARY) < 0.1] = 0.0
        self.inverse = torch.empty(self.requests, VOCABULARY).exponential_().reciprocal()


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("all_greedy", [False, True])
def test_greedy_rejection(all_greedy: bool, synthetic: bool) -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        arguments = {
            "output_token_ids_ptr": d.output,
            "cu_num_draft_tokens_ptr": d.ends,
            "draft_token_ids_ptr": d.ids,
            "target_argmax_ptr": torch.randint(0, 3, (d.total,)),
            "bonus_token_ids_ptr": d.bonus,
            "is_greedy_ptr": None if all_greedy else d.greedy,
            "max_spec_len": d.width,
            "uniform_probs_ptr": d.uniform if synthetic else None,
            "synthetic_conditional_rates_ptr": d.rates if synthetic else None,
            "SYNTHETIC_MODE": synthetic,
        }
        kernel = f"{REJECTION}.rejection_greedy_sample_kernel"
        ours = rejection.rejection_greedy_sample
        compare(kernel, (d.requests,), ours, arguments, ("output_token_ids_ptr",))


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("with_draft_probabilities", [False, True])
def test_random_rejection(with_draft_probabilities: bool, synthetic: bool) -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        arguments = {
            "output_token_ids_ptr": d.output,
            "cu_num_draft_tokens_ptr": d.ends,
            "draft_token_ids_ptr": d.ids,
            "draft_probs_ptr": d.drafted if with_draft_probabilities else None,
            "target_probs_ptr": d.target,
            "bonus_token_ids_ptr": d.bonus,
            "recovered_token_ids_ptr": torch.randint(0, VOCABULARY, (d.total,), dtype=torch.int32),
            "uniform_probs_ptr": d.uniform if with_draft_probabilities else d.uniform / 5,
            "is_greedy_ptr": d.greedy,
            "max_spec_len": d.width,
            "vocab_size": VOCABULARY,
            "synthetic_conditional_rates_ptr": d.rates if synthetic else None,
            "NO_DRAFT_PROBS": not with_draft_probabilities,
            "SYNTHETIC_MODE": synthetic,
        }
        kernel = f"{REJECTION}.rejection_random_sample_kernel"
        ours = rejection.rejection_random_sample
        compare(kernel, (d.requests,), ours, arguments, ("output_token_ids_ptr",))


@pytest.mark.parametrize("with_draft_probabilities", [False, True])
def test_recovered_tokens(with_draft_probabilities: bool) -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        arguments = {
            "output_token_ids_ptr": torch.zeros(d.total, dtype=torch.int32),
            "cu_num_draft_tokens_ptr": d.ends,
            "draft_token_ids_ptr": d.ids,
            "draft_probs_ptr": d.drafted if with_draft_probabilities else None,
            "target_probs_ptr": d.target,
            "inv_q_ptr": d.inverse,
            "vocab_size": VOCABULARY,
            "BLOCK_SIZE": 8,
            "NO_DRAFT_PROBS": not with_draft_probabilities,
            "USE_FP64_GUMBEL": False,
        }
        kernel = f"{REJECTION}.sample_recovered_tokens_kernel"
        ours = rejection.sample_recovered_tokens
        compare(kernel, (d.requests, d.width), ours, arguments, ("output_token_ids_ptr",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_expand(dtype: torch.dtype) -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        arguments = {
            "output_ptr": torch.empty(d.total, dtype=dtype),
            "input_ptr": torch.randint(0, 3, (d.requests,)).to(dtype),
            "cu_num_tokens_ptr": d.ends,
            "replace_from": 0,
            "replace_to": 1,
            "MAX_NUM_TOKENS": 8,
        }
        compare(f"{REJECTION}.expand_kernel", (d.requests,), rejection.expand, arguments, ("output_ptr",))


def test_a_drafters_next_position_and_slot() -> None:
    for seed in SEEDS:
        torch.manual_seed(seed)
        batch, padded, blocks, size = 4, 6, 5, 8
        longest = blocks * size - 3
        arguments = {
            "positions_ptr": torch.randint(longest - 5, longest, (batch,)) - 10 * (torch.arange(batch) % 2),
            "block_table_ptr": torch.randint(0, 30, (batch, blocks), dtype=torch.int32),
            "block_table_stride": blocks,
            "seq_lens_ptr": torch.randint(1, longest + 1, (batch,), dtype=torch.int32),
            "out_clamped_positions_ptr": torch.zeros(batch, dtype=torch.int64),
            "out_slot_mapping_ptr": torch.zeros(padded, dtype=torch.int64),
            "block_size": size,
            "max_model_len": longest,
            "n_blocks_per_req": blocks,
            "PAD_ID": -1,
            "batch_size": batch,
        }
        kernel = f"{DRAFT}.eagle_step_slot_mapping_metadata_kernel"
        ours = drafts.eagle_step_slot_mapping_metadata
        compare(
            kernel,
            (padded,),
            ours,
            arguments,
            ("seq_lens_ptr", "out_clamped_positions_ptr", "out_slot_mapping_ptr"),
        )


def test_the_row_that_a_drafter_goes_on_from() -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        queries = torch.tensor([0, *(count + 1 for count in d.counts)], dtype=torch.int32)
        arguments = {
            "cu_num_draft_tokens_ptr": d.ends,
            "valid_sampled_tokens_count_ptr": torch.tensor([random.randint(0, c + 1) for c in d.counts]).int(),
            "query_start_loc_gpu_ptr": queries.cumsum(0).int(),
            "token_indices_to_sample_ptr": torch.zeros(d.requests, dtype=torch.int32),
            "num_rejected_tokens_gpu_ptr": torch.zeros(d.requests, dtype=torch.int32),
            "num_reqs": d.requests,
        }
        kernel = f"{DRAFT}.eagle_prepare_inputs_padded_kernel"
        outputs = ("token_indices_to_sample_ptr", "num_rejected_tokens_gpu_ptr")
        compare(kernel, (d.requests,), drafts.eagle_prepare_inputs_padded, arguments, outputs)


def test_the_token_that_a_drafter_goes_on_from() -> None:
    for seed in SEEDS:
        d = Drafts(seed)
        width = d.width + 1
        sampled = torch.randint(0, VOCABULARY + 2, (d.requests, width), dtype=torch.int32)
        sampled[torch.rand(d.requests, width) < 0.4] = -1
        arguments = {
            "sampled_token_ids_ptr": sampled,
            "discard_request_mask_ptr": torch.rand(d.requests) < 0.3,
            "backup_next_token_ids_ptr": torch.randint(0, VOCABULARY, (d.requests,), dtype=torch.int32),
            "next_token_ids_ptr": torch.zeros(d.requests, dtype=torch.int32),
            "valid_sampled_tokens_count_ptr": torch.zeros(d.requests, dtype=torch.int32),
            "vocab_size": VOCABULARY,
            "num_sampled_tokens_per_req": width,
            "num_reqs": d.requests,
            "stride_sampled_token_ids": width,
            "BLOCK_SIZE_TOKENS": 8,
        }
        kernel = f"{DRAFT}.eagle_prepare_next_token_padded_kernel"
        outputs = ("next_token_ids_ptr", "valid_sampled_tokens_count_ptr")
        compare(kernel, (d.requests,), drafts.eagle_prepare_next_token_padded, arguments, outputs)


def test_sampling_with_drafts_draws_from_the_models_distribution_whatever_the_drafter_proposes() -> None:
    """vLLM's whole rejection sampler on an NPU: the theorem of speculative sampling is the oracle."""
    result = under_virtual_npu("-m", "tests.npu.sampled_rejection")
    found = result_of(result)
    for name in ("with draft probabilities", "without"):
        assert found[name] == pytest.approx(found["target"], abs=0.015), name  # four standard deviations of 20000 draws
        assert 0.1 < found[f"{name}: accepted"] < 0.9
    assert found["with draft probabilities"][-1] == 0.0, "what the model never says is never sampled"
