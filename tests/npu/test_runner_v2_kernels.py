# SPDX-License-Identifier: Apache-2.0
"""The torch versions of model runner V2's kernels write what the bodies of vLLM's own Triton kernels write, on random
steps: requests inside their prompt, decoding and interrupted ones, padding, and every setting of the sampler with and
without use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.support.installed import needs_runner_v2
from vllm_ascend_patch.core.kernels import logprobs, one_token_each, request_tables, sampling, step_inputs

from .kernel_interpreter import Kernel

pytestmark = needs_runner_v2

SEEDS = range(6)
V2 = "vllm.v1.worker.gpu"
KERNELS = [
    pytest.param(step_inputs, False, id="any step"),
    pytest.param(step_inputs, True, id="one token each"),
    pytest.param(one_token_each, True, id="one token each, short"),
]
SLOTS, LONGEST, TOKENS, VOCABULARY, PAGE = 6, 40, 24, 70, 4
WORDS = -(-VOCABULARY // 32)


def compare(
    kernel: str, grid: tuple[int, ...], ours: Callable[..., None], arguments: dict[str, Any], *outputs: str
) -> Any:
    """Run both on copies, ours with the arguments that the release's kernel has; all outputs must be equal, those that
    are only partly written included. Floating point within rounding."""
    oracle = kernel_of(kernel)
    given = {name: arguments.get(name, 0) for name in oracle.parameters}
    theirs, mine = _copies(given), _copies(given)
    oracle.run(grid, **theirs)
    ours(**mine)
    for name in outputs:
        expected, found = (torch.stack(x[name]) if isinstance(x[name], tuple) else x[name] for x in (theirs, mine))
        close = expected.is_floating_point() and torch.allclose(expected, found, rtol=1e-5, atol=1e-6)
        assert close or torch.equal(expected, found), f"{name}: {found} instead of {expected}"
    return theirs, mine


@cache
def kernel_of(name: str) -> Kernel:
    """A kernel by its name below ``vllm.v1.worker.gpu``."""
    return Kernel(f"{V2}.{name}")


def _copies(arguments: dict[str, Any]) -> dict[str, Any]:
    def copy(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(tensor.clone() for tensor in argument)
        return argument.clone() if isinstance(argument, torch.Tensor) else argument

    return {name: copy(argument) for name, argument in arguments.items()}


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.int32)


class Batch:
    """A random step: ``requests`` of ``SLOTS`` rows, each with some of its tokens scheduled, or with the one that it
    decodes."""

    def __init__(self, seed: int, one_each: bool = False) -> None:
        torch.manual_seed(seed)
        self.requests = int(torch.randint(1, SLOTS, ()))
        self.rows = torch.randperm(SLOTS)[: self.requests]
        self.ids = ints(0, VOCABULARY, SLOTS, LONGEST)
        self.prefill = ints(2, LONGEST // 2, SLOTS)
        self.prompt = torch.minimum(self.prefill, ints(1, LONGEST // 2, SLOTS))
        self.computed = self.prefill + ints(0, 9, SLOTS) if one_each else ints(0, LONGEST // 2, SLOTS)
        left = (self.prefill - self.computed)[self.rows]
        self.lens = torch.where(left > 0, left - ints(0, 9, self.requests), 1).clamp(1, 4).int()
        self.starts = torch.cat([torch.zeros(1), self.lens.cumsum(0)]).int()
        self.seq_lens = torch.zeros(SLOTS, dtype=torch.int32)
        self.seq_lens[: self.requests] = self.computed[self.rows] + self.lens
        self.cu_logits = torch.arange(self.requests + 1, dtype=torch.int32)

    def of_step(self) -> dict[str, Any]:
        return {
            "idx_mapping_ptr": self.rows,
            "query_start_loc_ptr": self.starts,
            "num_computed_tokens_ptr": self.computed,
            "prefill_lens_ptr": self.prefill,
            "prefill_len_ptr": self.prefill,
            "seq_lens_ptr": self.seq_lens,
            "cu_num_logits_ptr": self.cu_logits,
            "all_token_ids_ptr": self.ids,
            "all_token_ids_stride": LONGEST,
            "BLOCK_SIZE": 4,
        }


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
@pytest.mark.parametrize("columns", [None, 12])
def test_staged_writes(dtype: torch.dtype, columns: int | None) -> None:
    for seed in SEEDS:
        torch.manual_seed(seed)
        pieces = int(torch.randint(1, SLOTS, ()))
        lens = ints(1, 5, pieces) if columns else torch.ones(pieces, dtype=torch.int32)
        arguments = {
            "output_ptr": torch.rand(SLOTS, *([columns] if columns else [])).mul(9).to(dtype),
            "output_stride": columns or 1,
            "write_indices_ptr": torch.randperm(SLOTS)[:pieces].int(),
            "write_starts_ptr": ints(0, 8, pieces) if columns else torch.zeros(pieces, dtype=torch.int32),
            "write_contents_ptr": torch.rand(int(lens.sum())).mul(99).to(dtype),
            "write_cu_lens_ptr": lens.cumsum(0).int(),
            "write_group_ids_ptr": None,
            "BLOCK_SIZE": 8,
            "MULTI_GROUP": False,
        }
        compare("buffer_utils._apply_write_kernel", (pieces, 1), request_tables.apply_write, arguments, "output_ptr")


def test_staged_writes_into_the_tables_of_several_groups() -> None:
    """Rows and columns from 0 on, which writes of other groups must leave alone."""
    for seed in range(12):
        torch.manual_seed(seed)
        widths = (8, 12, 10)
        group = ints(0, 3, int(torch.randint(1, SLOTS, ()))).sort().values
        pieces = len(group)
        lens = ints(1, 5, pieces)
        arguments = {
            "output_ptr": tuple(ints(1, 99, SLOTS, width) for width in widths),
            "output_stride": torch.tensor(widths),
            "write_indices_ptr": torch.randperm(SLOTS)[:pieces].int(),
            "write_starts_ptr": ints(0, 4, pieces),
            "write_contents_ptr": ints(100, 999, int(lens.sum())),
            "write_cu_lens_ptr": lens.cumsum(0).int(),
            "write_group_ids_ptr": group,
            "BLOCK_SIZE": 8,
            "MULTI_GROUP": True,
        }
        theirs, mine = compare("buffer_utils._apply_write_kernel", (pieces, 1), request_tables.apply_write, arguments)
        for expected, found in zip(theirs["output_ptr"], mine["output_ptr"], strict=True):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("one_each", [False, True])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_block_tables_and_slots_of_a_step(groups: int, windows: bool, one_each: bool) -> None:
    blocks = LONGEST // PAGE
    if windows and "MASK_SLIDING_WINDOW" not in kernel_of("block_table._gather_block_tables_kernel").parameters:
        pytest.skip("this vLLM leaves blocks before a window in the table")
    for seed in SEEDS:
        b = Batch(seed, one_each)
        tables = tuple(ints(1, 99, SLOTS, blocks) for _ in range(groups))
        counts = torch.full((groups, SLOTS), blocks, dtype=torch.int32)
        padded = min(SLOTS, b.requests + 1)
        gather = {
            "batch_idx_to_req_idx": b.rows,
            "src_block_table_ptrs": tables,
            "dst_block_table_ptrs": tuple(torch.zeros(SLOTS, blocks, dtype=torch.int32) for _ in range(groups)),
            "block_table_strides": torch.full((groups,), blocks),
            "num_blocks_ptr": counts,
            "num_blocks_stride": SLOTS,
            "num_reqs": b.requests,
            "num_computed_tokens_ptr": b.computed,
            "sliding_window_reach_ptr": ints(0, 2, groups) * ints(1, 12, groups),
            "block_sizes_ptr": torch.full((groups,), PAGE, dtype=torch.int32),
            "BLOCK_SIZE": 4,
            "MASK_SLIDING_WINDOW": windows,
        }
        kernel = "block_table._gather_block_tables_kernel"
        compare(kernel, (groups, padded), request_tables.gather_block_tables, gather, "dst_block_table_ptrs")
        position = torch.randint(0, LONGEST, (int(b.starts[-1]) + 3,))
        rows = b.rows.clone()
        if seed % 2 and not one_each:
            rows[-1] = -1
        slots = {
            "max_num_tokens": TOKENS,
            "idx_mapping": rows,
            "query_start_loc": b.starts,
            "pos": position,
            "block_table_ptrs": tables,
            "block_table_strides": torch.full((groups,), blocks),
            "block_sizes": torch.full((groups,), PAGE, dtype=torch.int32),
            "slot_mapping_enabled": torch.tensor([True, seed % 3 != 0][:groups]),
            "dcp_sharded": torch.ones(groups, dtype=torch.bool),
            "slot_mappings_ptr": torch.zeros(groups, TOKENS, dtype=torch.int64),
            "slot_mappings_stride": TOKENS,
            "CP_SIZE": 1,
            "CP_INTERLEAVE": 1,
            "PAD_ID": -1,
            "TRITON_BLOCK_SIZE": 8,
        }
        kernel, grid = "block_table._compute_slot_mappings_kernel", (groups, b.requests + 1)
        ours = (one_token_each if one_each else request_tables).compute_slot_mappings
        compare(kernel, grid, ours, slots, "slot_mappings_ptr")


@pytest.mark.parametrize("lookahead", [1, 3])
def test_tokens_of_prompts(lookahead: int) -> None:
    for seed in SEEDS:
        b = Batch(seed)
        arguments = {
            **b.of_step(),
            "input_ids_ptr": torch.full((TOKENS,), -7, dtype=torch.int32),
            "next_prefill_tokens_ptr": torch.full((lookahead, SLOTS), -7, dtype=torch.int32),
            "next_prefill_tokens_stride": SLOTS,
            "num_lookahead": lookahead,
            "LOOKAHEAD_BLOCK": 4,
        }
        kernel, ours = "input_batch._prepare_prefill_inputs_kernel", step_inputs.prepare_prefill_inputs
        compare(kernel, (b.requests,), ours, arguments, "input_ids_ptr", "next_prefill_tokens_ptr")


@pytest.mark.parametrize(("ours", "one_each"), KERNELS)
def test_positions_and_context_lengths(ours: Any, one_each: bool) -> None:
    for seed in SEEDS:
        b = Batch(seed, one_each)
        arguments = {
            **b.of_step(),
            "pos_ptr": torch.full((TOKENS,), -7),
            "seq_lens_ptr": torch.full((SLOTS,), 9, dtype=torch.int32),
            "max_num_reqs": SLOTS,
        }
        kernel = "input_batch._prepare_pos_seq_lens_kernel"
        compare(kernel, (b.requests + 1,), ours.prepare_pos_seq_lens, arguments, "pos_ptr", "seq_lens_ptr")


@pytest.mark.parametrize(("ours", "one_each"), KERNELS)
def test_the_last_token_goes_in_and_its_row_is_sampled_from(ours: Any, one_each: bool) -> None:
    for seed in SEEDS:
        b = Batch(seed, one_each)
        arguments = {
            **b.of_step(),
            "input_ids_ptr": torch.full((TOKENS,), -7, dtype=torch.int32),
            "last_sampled_tokens_ptr": torch.randint(0, VOCABULARY, (SLOTS, 1)),
            "draft_tokens_ptr": torch.zeros(SLOTS, 0, dtype=torch.int64),
            "logits_indices_ptr": torch.zeros(b.requests, dtype=torch.int64),
            "BLOCK_SIZE": 1,
            "NUM_NEW_SAMPLED_TOKENS": 1,
        }
        kernel = "input_batch._combine_sampled_and_draft_tokens_kernel"
        combine = ours.combine_sampled_and_draft_tokens
        compare(kernel, (b.requests,), combine, arguments, "input_ids_ptr", "logits_indices_ptr")


@pytest.mark.parametrize(("ours", "one_each"), KERNELS)
def test_what_was_sampled_is_booked(ours: Any, one_each: bool) -> None:
    for seed in SEEDS:
        b = Batch(seed, one_each)
        counted = {
            **b.of_step(),
            "num_sampled_ptr": torch.ones(b.requests, dtype=torch.int32),
            "num_rejected_ptr": torch.zeros(b.requests, dtype=torch.int32),
        }
        kernel, count = "input_batch._get_num_sampled_and_rejected_kernel", ours.get_num_sampled_and_rejected
        _, counted = compare(kernel, (b.requests,), count, counted, "num_sampled_ptr", "num_rejected_ptr")
        outputs = ["last_sampled_tokens_ptr", "all_token_ids_ptr", "total_len_ptr", "num_computed_tokens_ptr"]
        arguments = {
            **b.of_step(),
            "last_sampled_tokens_ptr": torch.full((SLOTS, 1), -7),
            "output_bin_counts_ptr": ints(0, 3, SLOTS, VOCABULARY) if seed % 3 else None,
            "output_bin_counts_stride": VOCABULARY,
            "sampled_tokens_ptr": torch.randint(0, VOCABULARY, (b.requests, 1)),
            "sampled_tokens_stride": 1,
            "num_sampled_ptr": counted["num_sampled_ptr"],
            "num_rejected_ptr": counted["num_rejected_ptr"],
            "query_start_loc_ptr": b.starts if seed % 2 else None,
            "total_len_ptr": ints(1, LONGEST - 1, SLOTS),
            "draft_tokens_ptr": None,
        }
        outputs += ["output_bin_counts_ptr"] if arguments["output_bin_counts_ptr"] is not None else []
        compare("input_batch._post_update_kernel", (b.requests,), ours.post_update, arguments, *outputs)


def logits_of(b: Batch) -> dict[str, Any]:
    return {
        "logits_ptr": torch.randn(b.requests, VOCABULARY) * 3,
        "logits_stride": VOCABULARY,
        "vocab_size": VOCABULARY,
        "expanded_idx_mapping_ptr": b.rows,
        "expanded_local_pos_ptr": torch.zeros(b.requests, dtype=torch.int32),
        "BLOCK_SIZE": 128,
        "LOGITS_BLOCK_SIZE": 32,
    }


@pytest.mark.parametrize("apply_temperature", [False, True])
def test_sampling_greedy_and_random_rows(apply_temperature: bool) -> None:
    for seed in SEEDS:
        b = Batch(seed)
        blocks = 3
        arguments = {
            **logits_of(b),
            "local_argmax_ptr": torch.zeros(b.requests, blocks, dtype=torch.int64),
            "local_argmax_stride": blocks,
            "local_max_ptr": torch.zeros(b.requests, blocks),
            "local_max_stride": blocks,
            "seeds_ptr": torch.randint(-(2**63), 2**63 - 1, (SLOTS,)),
            "pos_ptr": torch.randint(0, 2**40, (b.requests,)),
            "temp_ptr": torch.rand(SLOTS).mul(2) * (torch.rand(SLOTS) < 0.6),
            "BLOCK_SIZE": 32,
            "IS_DRAFTING": False,
            "APPLY_TEMPERATURE": apply_temperature,
            "USE_FP64": False,
            "PER_TOKEN_COL": False,
            "logits_cache_ptr": None,
            "logits_cache_col_ptr": None,
            "logits_cache_source_ptr": None,
        }
        both = compare("sample.gumbel._gumbel_sample_kernel", (b.requests, blocks), sampling.gumbel_sample, arguments)
        theirs, mine = ((x["local_max_ptr"].max(dim=1), x["local_argmax_ptr"]) for x in both)
        assert torch.allclose(theirs[0].values, mine[0].values, rtol=1e-5, atol=1e-5)
        expected, found = (tokens.gather(1, largest.indices.unsqueeze(1)) for largest, tokens in (theirs, mine))
        assert torch.equal(expected, found)


def test_the_noise_is_gumbels() -> None:
    """Mean and standard deviation of 100000 draws, within four standard errors: Euler's constant, and pi over root
    six."""
    noise = sampling.gumbel_noise(torch.arange(100), torch.arange(100) * 7, 1000)
    assert noise.mean().item() == pytest.approx(0.57722, abs=4 * 1.2825 / 100000**0.5)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_random_tokens_follow_the_softmax(temperature: float) -> None:
    """Pearson's statistic of 20000 requests' tokens is below chi-square's 99.9th percentile, 7 degrees of freedom."""
    requests, vocabulary = 20000, 8
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5])
    tokens, largest = torch.zeros(requests, 1, dtype=torch.int64), torch.zeros(requests, 1)
    sampling.gumbel_sample(
        local_argmax_ptr=tokens,
        local_max_ptr=largest,
        logits_cache_ptr=None,
        logits_cache_col_ptr=None,
        logits_cache_source_ptr=None,
        logits_ptr=logits.repeat(requests, 1),
        expanded_idx_mapping_ptr=torch.arange(requests),
        seeds_ptr=torch.arange(requests) * 7919,
        pos_ptr=torch.arange(requests) % 500,
        temp_ptr=torch.full((requests,), temperature),
        IS_DRAFTING=False,
        APPLY_TEMPERATURE=True,
        USE_FP64=False,
    )
    expected = (logits / temperature).softmax(dim=0) * requests
    found = torch.bincount(tokens[:, 0], minlength=vocabulary)
    assert ((found - expected) ** 2 / expected).sum().item() < 24.32


def test_temperature_and_min_p() -> None:
    for seed in SEEDS:
        b = Batch(seed)
        arguments = {
            **logits_of(b),
            "temperature_ptr": torch.tensor([0.0, 1.0, 0.3, 2.0, 0.7, 1.5]),
            "min_p_ptr": torch.tensor([0.0, 0.9, 0.3, 0.05, 0.0, 1.0]),
        }
        kernel = "sample.gumbel._temperature_kernel"
        compare(kernel, (b.requests, 1), sampling.temperature, arguments, "logits_ptr")
        compare("sample.min_p._min_p_kernel", (b.requests,), sampling.min_p, arguments, "logits_ptr")


def test_penalties_by_what_was_said() -> None:
    for seed in SEEDS:
        b = Batch(seed)
        counting = {
            **b.of_step(),
            "expanded_idx_mapping_ptr": b.rows,
            "prompt_len_ptr": b.prompt,
            "prompt_bin_mask_ptr": torch.zeros(SLOTS, WORDS, dtype=torch.int32),
            "prompt_bin_mask_stride": WORDS,
            "output_bin_counts_ptr": torch.zeros(SLOTS, VOCABULARY, dtype=torch.int32),
            "output_bin_counts_stride": VOCABULARY,
            "BLOCK_SIZE": 8,
        }
        kernel, outputs = "sample.penalties._bincount_kernel", ("prompt_bin_mask_ptr", "output_bin_counts_ptr")
        _, counted = compare(kernel, (b.requests, LONGEST // 8), sampling.bincount, counting, *outputs)
        arguments = {
            **counted,
            **logits_of(b),
            "token_ids_ptr": torch.zeros(b.requests, dtype=torch.int32),
            "repetition_penalty_ptr": torch.tensor([1.0, 1.3, 0.7, 1.0, 2.0, 1.0]),
            "frequency_penalty_ptr": torch.tensor([0.0, 0.2, 0.0, -0.4, 0.0, 0.0]),
            "presence_penalty_ptr": torch.tensor([0.0, 0.0, 0.5, 0.0, -0.1, 0.0]),
            "BLOCK_SIZE": 32,
        }
        kernel = "sample.penalties._penalties_kernel"
        compare(kernel, (b.requests, WORDS), sampling.penalties, arguments, "logits_ptr")


@pytest.mark.parametrize("restore", [False, True])
def test_allowed_tokens_biases_and_stop_tokens(restore: bool) -> None:
    for seed in SEEDS:
        b = Batch(seed)
        ids = {
            name: torch.stack([torch.randperm(VOCABULARY)[:8] for _ in range(SLOTS)]).int()
            for name in ("allowed_token_ids_ptr", "bias_token_ids_ptr", "stop_token_ids_ptr")
        }
        if seed % 2:  # requests that may say stop tokens only
            ids["stop_token_ids_ptr"] = ids["allowed_token_ids_ptr"].clone()
        arguments = {
            **logits_of(b),
            **ids,
            "num_allowed_token_ids_ptr": ints(0, 2, SLOTS) * ints(1, 9, SLOTS),
            "allowed_token_ids_stride": 8,
            "num_logit_bias_ptr": ints(0, 9, SLOTS),
            "bias_token_ids_stride": 8,
            "bias_ptr": torch.randn(SLOTS, 8),
            "bias_stride": 8,
            "pos_ptr": torch.randint(0, 6, (b.requests,)),
            "min_lens_ptr": ints(0, 9, SLOTS),
            "num_stop_token_ids_ptr": ints(0, 2, SLOTS) * 8,
            "restore_when_all_masked_ptr": ints(0, 2, SLOTS),
            "stop_token_ids_stride": 8,
            "BLOCK_SIZE": 8,
            "CHECK_ALL_MASKED_ROWS": restore,
        }
        compare("sample.logit_bias._bias_kernel", (b.requests,), sampling.bias, arguments, "logits_ptr")


def test_bad_words() -> None:
    forbidden = 0
    for seed in range(30):
        b = Batch(seed)
        b.ids = ints(0, 3, SLOTS, LONGEST)
        lens = ints(1, 4, SLOTS, 5)
        total = torch.maximum(b.prompt, ints(1, LONGEST, SLOTS))
        arguments = {
            **b.of_step(),
            **logits_of(b),
            "bad_word_token_ids_ptr": ints(0, 3, SLOTS, 20),
            "bad_word_token_ids_stride": 20,
            "bad_word_offsets_ptr": torch.cat([torch.zeros(SLOTS, 1), lens.cumsum(1)], dim=1).int(),
            "bad_word_offsets_stride": 6,
            "num_bad_words_ptr": ints(0, 6, SLOTS),
            "prompt_len_ptr": b.prompt,
            "total_len_ptr": total,
            "input_ids_ptr": torch.zeros(TOKENS, dtype=torch.int32),
        }
        kernel = "sample.bad_words._bad_words_kernel"
        _, mine = compare(kernel, (b.requests, 5), sampling.bad_words, arguments, "logits_ptr")
        forbidden += int(mine["logits_ptr"].isinf().sum())
    assert forbidden > 20


def test_a_grammars_mask() -> None:
    for seed in SEEDS:
        b = Batch(seed)
        masks = int(torch.randint(1, b.requests + 1, ()))
        arguments = {
            **logits_of(b),
            "logits_indices_ptr": torch.randperm(b.requests)[:masks].int(),
            "cu_num_logits_ptr": b.cu_logits,
            "bitmask_ptr": torch.randint(-(2**31), 2**31 - 1, (masks, WORDS)).int(),
            "bitmask_stride": WORDS,
            "MASK_STRIDE": 1,
            "BLOCK_SIZE": 32,
        }
        kernel, ours = "structured_outputs._apply_grammar_bitmask_kernel", sampling.apply_grammar_bitmask
        compare(kernel, (masks, WORDS), ours, arguments, "logits_ptr")


def test_log_probabilities_and_ranks() -> None:
    for seed in SEEDS:
        b = Batch(seed)
        ids = torch.randint(0, VOCABULARY, (b.requests, 5))
        arguments = {
            **logits_of(b),
            "output_ptr": torch.zeros(b.requests, 5),
            "topk_ids_ptr": ids,
            "topk_ids_stride": 5,
            "topk": 5,
            "BLOCK_SIZE": 32,
            "TOPK_BLOCK_SIZE": 4,
        }
        kernel = "sample.logprob._topk_log_softmax_kernel"
        compare(kernel, (b.requests,), logprobs.topk_log_softmax, arguments, "output_ptr")
        arguments |= {"output_ptr": torch.zeros(b.requests, dtype=torch.int64), "token_ids_ptr": ids[:, 0].clone()}
        compare("sample.logprob._ranks_kernel", (b.requests,), logprobs.ranks, arguments, "output_ptr")


@pytest.mark.parametrize("likeliest", [0, 3])
def test_which_tokens_log_probabilities_are_asked_of(likeliest: int) -> None:
    for seed in SEEDS:
        b = Batch(seed)
        columns = max(likeliest, 4)
        arguments = {
            "out_token_ids_ptr": torch.zeros(b.requests, 1 + columns, dtype=torch.int64),
            "out_token_ids_stride": 1 + columns,
            "out_valid_mask_ptr": torch.zeros(b.requests, 1 + columns, dtype=torch.bool),
            "out_valid_mask_stride": 1 + columns,
            "sampled_token_ids_ptr": torch.randint(0, VOCABULARY, (b.requests,)),
            "topk_indices_ptr": ints(0, VOCABULARY, b.requests, max(1, likeliest)),
            "topk_indices_stride": max(1, likeliest),
            "expanded_idx_mapping_ptr": b.rows,
            "num_per_req_token_ids_ptr": ints(0, 2, SLOTS) * ints(1, 5, SLOTS),
            "per_req_token_ids_ptr": ints(0, VOCABULARY, SLOTS, 6),
            "per_req_token_ids_stride": 6,
            "NUM_TOPK": likeliest,
            "PADDED_COLS": 4,
        }
        kernel, ours = "sample.logprob._fill_logprob_token_ids_kernel", logprobs.fill_logprob_token_ids
        compare(kernel, (b.requests,), ours, arguments, "out_token_ids_ptr", "out_valid_mask_ptr")


def test_the_tokens_of_a_prompt_that_follow_each_of_the_step() -> None:
    for seed in SEEDS:
        b = Batch(seed)
        arguments = {**b.of_step(), "prompt_logprobs_token_ids_ptr": torch.zeros(int(b.starts[-1]), dtype=torch.int64)}
        kernel, ours = "sample.prompt_logprob._prompt_logprobs_token_ids_kernel", logprobs.prompt_logprobs_token_ids
        compare(kernel, (b.requests,), ours, arguments, "prompt_logprobs_token_ids_ptr")
