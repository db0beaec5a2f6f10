# SPDX-License-Identifier: Apache-2.0
"""The torch versions of model runner V2's kernels for drafts write what the bodies of vLLM's own Triton kernels write:
requests with any number of drafts, greedy and random ones, inside their prompt and past it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.support.installed import needs_runner_v2, vllm_file
from vllm_ascend_patch.core.kernels import drafter_inputs, sampling, step_inputs, verification

from .test_runner_v2_kernels import LONGEST, SEEDS, SLOTS, TOKENS, VOCABULARY, WORDS, Batch, compare, ints, kernel_of

pytestmark = needs_runner_v2

DRAFTS = 3


class Drafted(Batch):
    """A random step in which requests past their prompt have up to ``DRAFTS`` drafts; some are placeholders."""

    def __init__(self, seed: int, all_decode: bool = False) -> None:
        super().__init__(seed)
        if all_decode:
            self.computed = self.prefill + ints(0, 5, SLOTS)
        past = (self.computed >= self.prefill)[self.rows]
        self.drafts = torch.where(past, ints(0, DRAFTS + 1, self.requests), 0).int()
        self.lens = torch.where(past, self.drafts + 1, self.lens)
        self.starts = torch.cat([torch.zeros(1), self.lens.cumsum(0)]).int()
        self.seq_lens[: self.requests] = self.computed[self.rows] + self.lens
        self.cu_logits = torch.cat([torch.zeros(1), (self.drafts + 1).cumsum(0)]).int()
        self.logit_rows = int(self.cu_logits[-1])
        self.owners = torch.repeat_interleave(torch.arange(self.requests), self.drafts + 1)
        self.expanded = self.rows[self.owners]
        self.places = (torch.arange(self.logit_rows) - self.cu_logits[self.owners]).int()
        self.tokens = ints(0, VOCABULARY, self.logit_rows)
        self.temperature = torch.rand(SLOTS).mul(2) * (torch.rand(SLOTS) < 0.6)
        self.seeds = torch.arange(SLOTS) * 12345678901
        self.positions = torch.arange(self.logit_rows) + 7

    def logits(self) -> dict[str, Any]:
        return {
            "logits_ptr": torch.randn(self.logit_rows, VOCABULARY) * 3,
            "logits_stride": VOCABULARY,
            "vocab_size": VOCABULARY,
            "expanded_idx_mapping_ptr": self.expanded,
            "expanded_local_pos_ptr": self.places,
        }


def test_rows_of_logits_and_what_goes_in() -> None:
    for seed in range(10):
        b = Drafted(seed)
        expand = {
            "idx_mapping_ptr": b.rows,
            "expanded_idx_mapping_ptr": torch.full((b.logit_rows,), -7),
            "expanded_local_pos_ptr": torch.full((b.logit_rows,), -7, dtype=torch.int32),
            "cu_num_logits_ptr": b.cu_logits,
            "BLOCK_SIZE": 4,
        }
        names = ("expanded_idx_mapping_ptr", "expanded_local_pos_ptr")
        kernel = "input_batch._expand_idx_mapping_kernel"
        compare(kernel, (b.requests,), step_inputs.expand_idx_mapping, expand, *names)
        arguments = {
            **b.of_step(),
            "input_ids_ptr": torch.full((TOKENS,), -7, dtype=torch.int32),
            "last_sampled_tokens_ptr": torch.randint(0, VOCABULARY, (SLOTS, 1)),
            "draft_tokens_ptr": torch.randint(0, VOCABULARY, (SLOTS, DRAFTS)),
            "draft_tokens_stride": DRAFTS,
            "logits_indices_ptr": torch.zeros(b.logit_rows, dtype=torch.int64),
            "BLOCK_SIZE": 4,
            "NUM_NEW_SAMPLED_TOKENS": 1,
        }
        kernel = "input_batch._combine_sampled_and_draft_tokens_kernel"
        ours = step_inputs.combine_sampled_and_draft_tokens
        compare(kernel, (b.requests,), ours, arguments, "input_ids_ptr", "logits_indices_ptr")


def test_several_sampled_tokens_are_booked() -> None:
    for seed in SEEDS:
        b = Drafted(seed)
        sampled = torch.minimum(ints(0, DRAFTS + 2, b.requests), b.drafts + 1)
        tokens = torch.randint(0, VOCABULARY, (b.requests, DRAFTS + 1))
        unwritten = torch.arange(DRAFTS + 1) >= sampled.clamp(min=1).unsqueeze(1)
        arguments = {
            **b.of_step(),
            "last_sampled_tokens_ptr": torch.full((SLOTS, 1), -7),
            "output_bin_counts_ptr": ints(0, 3, SLOTS, VOCABULARY),
            "output_bin_counts_stride": VOCABULARY,
            "sampled_tokens_ptr": tokens.masked_fill(unwritten, 2**60),
            "sampled_tokens_stride": DRAFTS + 1,
            "num_sampled_ptr": sampled,
            "num_rejected_ptr": b.drafts + 1 - sampled,
            "total_len_ptr": ints(1, LONGEST - DRAFTS - 1, SLOTS),
            "draft_tokens_ptr": None,
        }
        outputs = ("last_sampled_tokens_ptr", "all_token_ids_ptr", "total_len_ptr", "num_computed_tokens_ptr")
        kernel = "input_batch._post_update_kernel"
        compare(kernel, (b.requests,), step_inputs.post_update, arguments, *outputs, "output_bin_counts_ptr")


def test_penalties_and_bad_words_count_the_drafts_before_a_row() -> None:
    forbidden = 0
    for seed in range(10):
        b = Drafted(seed)
        b.tokens = ints(0, 3, b.logit_rows)
        arguments = {
            **b.logits(),
            "token_ids_ptr": b.tokens,
            "prompt_bin_mask_ptr": torch.randint(-(2**31), 2**31 - 1, (SLOTS, WORDS)).int(),
            "prompt_bin_mask_stride": WORDS,
            "output_bin_counts_ptr": ints(0, 2, SLOTS, VOCABULARY),
            "output_bin_counts_stride": VOCABULARY,
            "repetition_penalty_ptr": torch.tensor([1.0, 1.3, 0.7, 1.0, 2.0, 1.0]),
            "frequency_penalty_ptr": torch.tensor([0.0, 0.2, 0.0, -0.4, 0.0, 0.0]),
            "presence_penalty_ptr": torch.tensor([0.0, 0.0, 0.5, 0.0, -0.1, 0.0]),
            "BLOCK_SIZE": 32,
        }
        compare(
            "sample.penalties._penalties_kernel", (b.logit_rows, WORDS), sampling.penalties, arguments, "logits_ptr"
        )
        b.ids = ints(0, 3, SLOTS, LONGEST)
        arguments = {
            **b.of_step(),
            **b.logits(),
            "bad_word_token_ids_ptr": ints(0, 3, SLOTS, 20),
            "bad_word_token_ids_stride": 20,
            "bad_word_offsets_ptr": torch.cat([torch.zeros(SLOTS, 1), ints(1, 4, SLOTS, 5).cumsum(1)], dim=1).int(),
            "bad_word_offsets_stride": 6,
            "num_bad_words_ptr": ints(0, 6, SLOTS),
            "prompt_len_ptr": b.prompt,
            "total_len_ptr": torch.maximum(b.prompt, ints(1, LONGEST, SLOTS)),
            "input_ids_ptr": b.tokens,
        }
        kernel = "sample.bad_words._bad_words_kernel"
        _, mine = compare(kernel, (b.logit_rows, 5), sampling.bad_words, arguments, "logits_ptr")
        forbidden += int(mine["logits_ptr"].isinf().sum())
    assert forbidden > 20


def test_a_grammars_mask_for_rows_of_drafts() -> None:
    stride = DRAFTS + 1
    for seed in SEEDS:
        b = Drafted(seed)
        at = torch.randperm(b.requests * stride)[
            : b.requests * 2
        ].int()  # some of them rows that a request does not have
        arguments = {
            **b.logits(),
            "logits_indices_ptr": at,
            "cu_num_logits_ptr": b.cu_logits,
            "bitmask_ptr": torch.randint(-(2**31), 2**31 - 1, (len(at), WORDS)).int(),
            "bitmask_stride": WORDS,
            "MASK_STRIDE": stride,
            "BLOCK_SIZE": 32,
        }
        kernel, ours = "structured_outputs._apply_grammar_bitmask_kernel", sampling.apply_grammar_bitmask
        compare(kernel, (len(at), WORDS), ours, arguments, "logits_ptr")


def test_draft_tokens_of_the_rows() -> None:
    for seed in SEEDS:
        b = Drafted(seed)
        ids = ints(0, VOCABULARY, TOKENS)
        arguments = {
            **b.logits(),
            "draft_sampled_ptr": torch.zeros(b.logit_rows, dtype=torch.int32),
            "pos_ptr": torch.zeros(b.logit_rows, dtype=torch.int64),
            "input_ids_ptr": ids,
            "positions_ptr": torch.randint(0, LONGEST, (TOKENS,)),
            "logits_indices_ptr": torch.randperm(TOKENS)[: b.logit_rows],
            "prefill_len_ptr": b.prefill,
            "num_logits": b.logit_rows,
            "BLOCK_SIZE": 4,
        }
        kernel, ours = "spec_decode.rejection_sampler._gather_draft_sampled_kernel", verification.gather_draft_sampled
        compare(kernel, (-(-b.logit_rows // 4),), ours, arguments, "draft_sampled_ptr", "pos_ptr")
        flat = {
            "flat_sampled_ptr": torch.zeros(b.logit_rows, dtype=torch.int64),
            "sampled_ptr": torch.randint(0, VOCABULARY, (b.requests, DRAFTS + 1)),
            "sampled_stride": DRAFTS + 1,
            "num_sampled_ptr": torch.minimum(ints(1, DRAFTS + 2, b.requests), b.drafts + 1),
            "cu_num_logits_ptr": b.cu_logits,
        }
        kernel = "spec_decode.rejection_sampler._flatten_sampled_kernel"
        compare(kernel, (b.requests,), verification.flatten_sampled, flat, "flat_sampled_ptr")


STEPS = ("_compute_local_logits_stats_kernel", "_rejection_kernel", "_resample_kernel", "_insert_resampled_kernel")
OURS: tuple[Callable[..., None], ...] = (
    verification.compute_local_logits_stats,
    verification.reject,
    verification.resample,
    verification.insert_resampled,
)
BLOCK = 32


def verified(
    b: Drafted, likely: torch.Tensor, drafter: torch.Tensor | None, oracle: bool, **ours_alone: bool
) -> dict[str, torch.Tensor]:
    """What the four kernels, one after the other as upstream launches them, make of a batch."""
    vocabulary = likely.shape[1]
    blocks = -(-vocabulary // BLOCK)
    drafts = DRAFTS if drafter is None else drafter.shape[1]
    shape = (b.logit_rows, blocks)
    given: dict[str, Any] = {
        "target_local_argmax_ptr": torch.zeros(shape, dtype=torch.int64),
        "resampled_local_argmax_ptr": torch.zeros(b.requests, blocks, dtype=torch.int64),
        "resampled_local_max_ptr": torch.zeros(b.requests, blocks),
        **{
            name: torch.zeros(shape)
            for name in (
                "target_local_max_ptr",
                "target_local_sumexp_ptr",
                "draft_local_max_ptr",
                "draft_local_sumexp_ptr",
            )
        },
        **{name: torch.zeros(b.requests) for name in ("target_rejected_logsumexp_ptr", "draft_rejected_logsumexp_ptr")},
        "target_logits_ptr": likely.clone(),
        "target_logits_stride": vocabulary,
        "draft_logits_ptr": drafter,
        "draft_logits_stride_0": drafts * vocabulary,
        "draft_logits_stride_1": vocabulary,
        "draft_sampled_ptr": b.tokens.long(),
        "cu_num_logits_ptr": b.cu_logits,
        "idx_mapping_ptr": b.rows,
        "expanded_idx_mapping_ptr": b.expanded,
        "expanded_local_pos_ptr": b.places,
        "temp_ptr": b.temperature,
        "seed_ptr": b.seeds,
        "pos_ptr": b.positions,
        "vocab_size": vocabulary,
        "vocab_num_blocks": blocks,
        "resample_num_blocks": blocks,
        "num_speculative_steps": drafts,
        "num_logits": b.logit_rows,
        "PADDED_VOCAB_NUM_BLOCKS": 4,
        "PADDED_RESAMPLE_NUM_BLOCKS": 4,
        "HAS_DRAFT_LOGITS": drafter is not None,
        "BLOCK_SIZE": BLOCK,
        "sampled_ptr": torch.zeros(b.requests, drafts + 1, dtype=torch.int64),
        "sampled_stride": drafts + 1,
        "CONTEXT_WIDTH": 1,
        **dict.fromkeys(("SYNTHETIC_MODE", "USE_BLOCK_VERIFICATION", "USE_FP64", "WATERMARK"), False),
        "DEDUPLICATE_CONTEXTS": False,
    }
    steps = torch.zeros(b.requests, dtype=torch.int32)
    given |= dict.fromkeys(("rejected_steps_ptr", "rejected_step_ptr", "num_sampled_ptr"), steps)
    strides = ("argmax", "max", "sumexp")
    given |= {f"{whose}_local_{what}_stride": blocks for whose in ("target", "draft", "resampled") for what in strides}
    grids = ((b.logit_rows, blocks), (b.requests,), (b.requests, blocks), (b.requests,))
    for step, ours, grid in zip(STEPS, OURS, grids, strict=True):
        kernel = kernel_of(f"spec_decode.rejection_sampler_utils.{step}")
        arguments = {name: given.get(name, 0) for name in kernel.parameters}
        if oracle:
            kernel.run(grid, **arguments)
        else:
            ours(**arguments, **ours_alone)
    return {"sampled": given["sampled_ptr"], "number": steps}


@pytest.mark.parametrize(("with_logits", "greedy"), [(False, False), (True, False), (False, True)])
def test_which_drafts_are_accepted_and_what_follows(with_logits: bool, greedy: bool) -> None:
    seen = {"all": 0, "some": 0, "none": 0}
    for seed in range(6):
        b = Drafted(seed, all_decode=True)
        if greedy:
            b.temperature.zero_()
        likely = torch.randn(b.logit_rows, VOCABULARY) * 2
        for row in range(b.logit_rows - 1):  # drafts that the model may accept, and placeholders
            if b.places[row + 1] and torch.rand(()) < 0.7:
                likely[row, b.tokens[row + 1]] += 6
        b.tokens[torch.rand(b.logit_rows) < 0.1] = -1
        drafter = torch.randn(SLOTS, DRAFTS, VOCABULARY) if with_logits else None
        expected = verified(b, likely, drafter, oracle=True)
        found = verified(b, likely, drafter, oracle=False, ALL_GREEDY=greedy)
        assert torch.equal(expected["number"], found["number"]), seed
        for row, number in enumerate(expected["number"].tolist()):
            assert torch.equal(expected["sampled"][row, :number], found["sampled"][row, :number]), seed
            drafts = int(b.drafts[row])
            if drafts:
                seen["all" if number == drafts + 1 else "none" if number == 1 else "some"] += 1
    assert min(seen.values()) > 0, seen


def test_a_drafters_logits_are_kept_as_they_were() -> None:
    """And what is drawn from them; in some releases by another noise in each of a drafter's steps."""
    by_step = "def spec_step_seed" in vllm_file("v1", "worker", "gpu", "sample", "gumbel.py").read_text()
    ours = partial(sampling.gumbel_sample, STEP_IN_SEED=by_step)
    for seed in SEEDS:
        b = Batch(seed)
        rows, blocks = b.requests, -(-VOCABULARY // BLOCK)
        logits = torch.randn(rows, VOCABULARY)
        arguments = {
            "logits_ptr": logits,
            "logits_stride": VOCABULARY,
            "vocab_size": VOCABULARY,
            "expanded_idx_mapping_ptr": b.rows if seed % 3 else torch.full((rows,), -1),
            "local_argmax_ptr": torch.zeros(rows, blocks, dtype=torch.int64),
            "local_argmax_stride": blocks,
            "local_max_ptr": torch.zeros(rows, blocks),
            "local_max_stride": blocks,
            "logits_cache_ptr": torch.zeros(SLOTS, DRAFTS, VOCABULARY + 2),
            "logits_cache_stride_0": DRAFTS * (VOCABULARY + 2),
            "logits_cache_stride_1": VOCABULARY + 2,
            "logits_cache_col_ptr": torch.tensor(1),
            "logits_cache_source_ptr": logits,
            "logits_cache_source_stride": VOCABULARY,
            "seeds_ptr": torch.randint(-(2**63), 2**63 - 1, (SLOTS,)),
            "pos_ptr": torch.randint(0, 2**40, (rows,)),
            "temp_ptr": torch.rand(SLOTS).mul(2) * (torch.rand(SLOTS) < 0.6),
            "BLOCK_SIZE": BLOCK,
            "IS_DRAFTING": True,
            "APPLY_TEMPERATURE": True,
            "USE_FP64": False,
            "PER_TOKEN_COL": False,
        }
        kernel = "sample.gumbel._gumbel_sample_kernel"
        theirs, mine = compare(kernel, (rows, blocks), ours, arguments, "logits_cache_ptr")
        if seed % 3:
            expected, found = (
                x["local_argmax_ptr"].gather(1, x["local_max_ptr"].argmax(dim=1, keepdim=True)) for x in (theirs, mine)
            )
            assert torch.equal(expected, found)


def test_inputs_of_a_drafters_first_forward() -> None:
    names = ("input_ids", "positions", "query_start_loc", "seq_lens")
    for seed in range(20):
        b = Drafted(seed)
        tokens = int(b.starts[-1]) + seed % 2  # with and without padding behind the step
        arguments = {
            "last_token_indices_ptr": torch.full((SLOTS,), 5),
            "draft_current_step_ptr": torch.tensor([2]),
            "draft_input_ids_ptr": torch.full((TOKENS,), -7, dtype=torch.int32),
            "draft_positions_ptr": torch.full((TOKENS,), -7),
            "draft_query_start_loc_ptr": torch.full((SLOTS + 1,), -7, dtype=torch.int32),
            "draft_seq_lens_ptr": torch.full((SLOTS,), -7, dtype=torch.int32),
            "target_input_ids_ptr": ints(0, VOCABULARY, tokens),
            "target_positions_ptr": torch.randint(0, LONGEST, (tokens,)),
            "idx_mapping_ptr": b.rows,
            "last_sampled_ptr": torch.randint(0, VOCABULARY, (SLOTS, 1)),
            "next_prefill_tokens_ptr": ints(0, VOCABULARY, 1, SLOTS),
            "num_sampled_ptr": ints(0, 2, b.requests),
            "num_rejected_ptr": torch.minimum(ints(0, DRAFTS + 1, b.requests), b.drafts),
            "query_start_loc_ptr": b.starts,
            "seq_lens_ptr": b.seq_lens,
            "max_num_reqs": SLOTS,
            "BLOCK_SIZE": 4,
        }
        outputs = ["last_token_indices_ptr", "draft_current_step_ptr", *(f"draft_{name}_ptr" for name in names)]
        kernel = "spec_decode.target_dependent_ar.speculator._prepare_prefill_inputs_kernel"
        compare(kernel, (b.requests,), drafter_inputs.prepare_prefill_inputs, arguments, *outputs)


@pytest.mark.parametrize("advance", [True, False])
def test_inputs_of_a_drafters_later_forwards(advance: bool) -> None:
    module = "spec_decode.target_dependent_ar.speculator"
    for seed in SEEDS:
        b = Drafted(seed)
        buffers = {
            "input_ids_ptr": torch.full((SLOTS,), -7, dtype=torch.int32),
            "positions_ptr": torch.randint(0, LONGEST, (SLOTS,)),
            "sample_src_positions_ptr": torch.randint(0, LONGEST, (SLOTS,)),
            "seq_lens_ptr": ints(1, LONGEST, SLOTS),
            "max_model_len": LONGEST - 2,
            "max_num_reqs": SLOTS,
            "BLOCK_SIZE": 4,
            "ADVANCE_DRAFT_POSITIONS": advance,
        }
        kept = torch.randint(0, VOCABULARY, (SLOTS, DRAFTS))
        second = {
            **buffers,
            "draft_tokens_ptr": kept[: b.requests, 0].contiguous(),
            "draft_tokens_stride": 1,
            "target_seq_lens_ptr": b.seq_lens,
            "num_rejected_ptr": torch.minimum(ints(0, DRAFTS + 1, b.requests), b.drafts),
            "query_start_loc_ptr": torch.full((SLOTS + 1,), -7, dtype=torch.int32),
        }
        outputs = ("input_ids_ptr", "positions_ptr", "sample_src_positions_ptr", "seq_lens_ptr")
        kernel, ours = f"{module}._prepare_decode_inputs_kernel", drafter_inputs.prepare_decode_inputs
        compare(kernel, (b.requests + 1,), ours, second, *outputs, "query_start_loc_ptr")
        step = seed % DRAFTS
        later = {
            **buffers,
            "output_draft_tokens_ptr": kept,
            "output_draft_tokens_stride": DRAFTS,
            "next_input_hidden_states_ptr": torch.zeros(TOKENS, 8),
            "next_input_hidden_states_stride": 8,
            "draft_tokens_ptr": torch.randint(0, VOCABULARY, (b.requests,)),
            "current_draft_step_ptr": torch.tensor(step),
            "hidden_states_ptr": torch.randn(b.requests, 8),
            "hidden_states_stride": 8,
            "hidden_size": 8,
            "num_speculative_steps": DRAFTS,
        }
        kernel = f"{module}._update_draft_inputs_kernel"
        inputs = (*outputs, "next_input_hidden_states_ptr") if step < DRAFTS - 1 else ()
        compare(kernel, (b.requests,), drafter_inputs.update_draft_inputs, later, "output_draft_tokens_ptr", *inputs)


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (2, 4), (1, 1)])
def test_drafts_out_of_the_requests_own_tokens(shortest: int, longest: int) -> None:
    matched = 0
    for seed in range(12):
        b = Batch(seed)
        b.ids = ints(0, 3, SLOTS, LONGEST)
        blocks = 5
        arguments = {
            "token_ids_ptr": b.ids,
            "token_ids_stride": LONGEST,
            "idx_mapping_ptr": b.rows,
            "total_len_ptr": ints(1, LONGEST, SLOTS),
            "num_sampled_ptr": ints(0, 2, b.requests),
            "last_sampled_ptr": torch.randint(0, VOCABULARY, (SLOTS,)),
            "scratch_ptr": torch.full((SLOTS, blocks), 3),
            "scratch_stride": blocks,
            "drafts_ptr": torch.full((SLOTS, DRAFTS), -7),
            "L": LONGEST,
            "MIN_N": shortest,
            "MAX_N": longest,
            "MAX_N_PO2": 4,
            "BLOCK_L": 8,
            "N_BLOCKS": blocks,
            "K": DRAFTS,
            "K_PO2": 4,
            "N_BLOCKS_PO2": 8,
        }
        module = "spec_decode.ngram.speculator"
        scan, ours = f"{module}._ngram_scan_kernel", drafter_inputs.scan_for_ngrams
        theirs, mine = compare(scan, (b.requests, blocks), ours, arguments)
        best = [x["scratch_ptr"][: b.requests].amax(dim=1) for x in (theirs, mine)]
        assert torch.equal(*best)
        matched += int((best[0] > 0).sum())
        arguments["scratch_ptr"] = mine["scratch_ptr"]
        finalize = f"{module}._ngram_finalize_kernel"
        compare(finalize, (b.requests,), drafter_inputs.draft_from_ngrams, arguments, "drafts_ptr")
    assert matched > 10


DRAWS, FEW = 40000, 8
LIMIT = 29.9
"""Of chi-square with 7 degrees of freedom: exceeded once in 10000."""


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * len(tokens)
    return float(((torch.bincount(tokens, minlength=FEW) - expected) ** 2 / expected).sum())


def drawn(logits: torch.Tensor, seeds: torch.Tensor, drafting: bool, cache: torch.Tensor | None = None) -> torch.Tensor:
    """A token for each seed, at position 5 and temperature 1."""
    rows = len(seeds)
    largest, tokens = torch.zeros(rows, 1), torch.zeros(rows, 1, dtype=torch.int64)
    sampling.gumbel_sample(
        local_argmax_ptr=tokens,
        local_max_ptr=largest,
        logits_cache_ptr=cache,
        logits_cache_col_ptr=torch.tensor(0),
        logits_cache_source_ptr=logits,
        logits_ptr=logits,
        expanded_idx_mapping_ptr=torch.arange(rows),
        seeds_ptr=seeds,
        pos_ptr=torch.full((rows,), 5),
        temp_ptr=torch.ones(rows),
        IS_DRAFTING=drafting,
        APPLY_TEMPERATURE=True,
        USE_FP64=False,
    )
    return tokens[:, 0]


def test_random_sampling_has_the_models_distribution() -> None:
    torch.manual_seed(3)
    logits = torch.randn(FEW)
    tokens = drawn(logits.expand(DRAWS, FEW), torch.arange(DRAWS) * 7919, drafting=False)
    assert chi_square(tokens, logits.softmax(0)) < LIMIT
    assert chi_square(tokens, torch.randn(FEW).softmax(0)) > LIMIT, "the test tells distributions apart"


@pytest.mark.parametrize("with_logits", [False, True])
def test_tokens_behind_drafts_have_the_models_distribution(with_logits: bool) -> None:
    """Whatever the drafter proposes: its own draws, or the same token always; accepted or drawn anew."""
    torch.manual_seed(4)
    mine, theirs = torch.randn(FEW), torch.randn(FEW) * 1.5
    seeds = torch.arange(DRAWS) * 7919
    cache = torch.zeros(DRAWS, 1, FEW)
    drafts = drawn(theirs.expand(DRAWS, FEW), seeds, drafting=True, cache=cache)
    if not with_logits:
        drafts = torch.full((DRAWS,), int(mine.argmax()))
    b = Drafted(0)
    b.requests, b.rows, b.drafts = DRAWS, torch.arange(DRAWS), torch.ones(DRAWS)
    b.logit_rows, b.cu_logits = 2 * DRAWS, torch.arange(DRAWS + 1) * 2
    b.expanded, b.places = b.rows.repeat_interleave(2), torch.tensor([0, 1]).repeat(DRAWS).int()
    b.tokens = torch.stack([torch.zeros_like(drafts), drafts], dim=1).flatten()
    b.temperature, b.seeds, b.positions = torch.ones(DRAWS), seeds, torch.tensor([5, 6]).repeat(DRAWS)
    found = verified(b, mine.expand(2 * DRAWS, FEW).contiguous(), cache if with_logits else None, oracle=False)
    assert 0.05 < (found["number"] == 2).double().mean() < 0.95, "drafts must come out both ways"
    assert chi_square(found["sampled"][:, 0], mine.softmax(0)) < LIMIT
    second = found["sampled"][found["number"] == 2, 1]
    assert chi_square(second, mine.softmax(0)) < LIMIT
