# SPDX-License-Identifier: Apache-2.0
"""The kernels of model runner V2's sampler: what changes logits before sampling, and sampling itself by the Gumbel
trick.

Parameter names are the upstream kernels'. ``logits_ptr`` is ``[n, vocabulary]``, changed in place; per-request settings
are ``[R]``, ``expanded_idx_mapping_ptr`` ``[n]`` says whose a row is. Each is launched only where a request of the step
asks for it. With drafts a request has a row for each and one more, side by side; ``expanded_local_pos_ptr`` ``[n]`` counts
them, and the tokens before a row's are in ``token_ids_ptr`` or ``input_ids_ptr`` ``[n]``, from the request's second row on.
Nothing is read from the device.
"""

from __future__ import annotations

from typing import Any

import torch

_INFINITY = float("inf")
_HALF_WORD, _WORD = 2.0**-16, 2.0**-32
_DRAFTING = 1 << 30
"""Upstream's distance between the positions that a drafter and its verification draw noise for."""
_NO_TOKEN = -1
"""Stands for a token in the noise of a request's position that is drawn once."""


def gumbel_sample(
    local_argmax_ptr: torch.Tensor,
    local_max_ptr: torch.Tensor,
    logits_cache_ptr: torch.Tensor | None,
    logits_cache_col_ptr: torch.Tensor | None,
    logits_cache_source_ptr: torch.Tensor | None,
    logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    seeds_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    IS_DRAFTING: bool,
    APPLY_TEMPERATURE: bool,
    USE_FP64: bool,
    STEP_IN_SEED: bool = False,
    **_: Any,
) -> None:
    """The largest of each row's logits, with noise where the temperature is not 0, and its token.

    A drafter's logits are kept in ``logits_cache_ptr`` ``[R, K, vocabulary]`` at the step ``logits_cache_col_ptr``, as they
    were; a batch is a dummy, all of whose ``expanded_idx_mapping_ptr`` are -1, or has none. With ``STEP_IN_SEED``, which
    upstream's kernels do not have, its noise depends on that step, too. Upstream reduces blocks of a row and then their
    results ``[n, blocks]``; here the first column has the row's, and the others can never win. Raises
    ``NotImplementedError`` for 64-bit noise.
    """
    if USE_FP64:
        raise NotImplementedError("sampling with 64-bit noise is not supported on Ascend NPUs")
    seeds = seeds_ptr[expanded_idx_mapping_ptr]
    if logits_cache_ptr is not None and logits_cache_col_ptr is not None and logits_cache_source_ptr is not None:
        _keep(logits_cache_ptr, expanded_idx_mapping_ptr, logits_cache_col_ptr, logits_cache_source_ptr)
        if STEP_IN_SEED:
            seeds = seeds ^ (logits_cache_col_ptr.long() << 32)
    logits = logits_ptr.float()
    temperature = temp_ptr[expanded_idx_mapping_ptr].unsqueeze(1)
    random = temperature != 0
    if APPLY_TEMPERATURE:
        logits = logits / torch.where(random, temperature, 1.0)
    position = pos_ptr + _DRAFTING if IS_DRAFTING else pos_ptr
    noise = gumbel_noise(seeds, position, logits.shape[1])
    largest, token = torch.where(random, logits + noise, logits).max(dim=1)
    local_max_ptr.fill_(-_INFINITY)
    local_max_ptr[:, 0] = largest
    local_argmax_ptr[:, 0] = token


def _keep(cache: torch.Tensor, request: torch.Tensor, column: torch.Tensor, logits: torch.Tensor) -> None:
    row, column = request.clamp(min=0), column.expand(request.shape)
    kept = cache[row, column]
    width = logits.shape[1]
    kept[:, :width] = torch.where((request >= 0).unsqueeze(1), logits, kept[:, :width])
    cache[row, column] = kept


def temperature(
    logits_ptr: torch.Tensor, expanded_idx_mapping_ptr: torch.Tensor, temperature_ptr: torch.Tensor, **_: Any
) -> None:
    """Divide by the temperature; 0 means greedy and leaves logits alone."""
    value = temperature_ptr[expanded_idx_mapping_ptr].unsqueeze(1)
    logits_ptr.div_(torch.where(value == 0, 1.0, value))


def min_p(logits_ptr: torch.Tensor, expanded_idx_mapping_ptr: torch.Tensor, min_p_ptr: torch.Tensor, **_: Any) -> None:
    """Forbid tokens of less than ``min_p`` times the likeliest one's probability; 0 forbids none."""
    threshold = logits_ptr.amax(dim=1) + min_p_ptr[expanded_idx_mapping_ptr].log()
    logits_ptr.masked_fill_(logits_ptr < threshold.unsqueeze(1), -_INFINITY)


def penalties(
    logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    repetition_penalty_ptr: torch.Tensor,
    frequency_penalty_ptr: torch.Tensor,
    presence_penalty_ptr: torch.Tensor,
    prompt_bin_mask_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor,
    token_ids_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Repetition, frequency and presence penalties; ``prompt_bin_mask_ptr`` is ``[R, vocabulary / 32]``, a bit per
    token of the prompt, ``output_bin_counts_ptr`` ``[R, vocabulary]`` how often each token was generated. A row's drafts
    count as generated for the rows behind it."""
    request = expanded_idx_mapping_ptr
    repetition, frequency, presence = (
        table[request].unsqueeze(1) for table in (repetition_penalty_ptr, frequency_penalty_ptr, presence_penalty_ptr)
    )
    counts = output_bin_counts_ptr[request]
    row = torch.arange(request.shape[0], device=request.device)
    behind = row.unsqueeze(1) - row
    draft = (behind >= 0) & (behind < expanded_local_pos_ptr.unsqueeze(1)) & (token_ids_ptr >= 0)
    ids = token_ids_ptr.long().clamp(min=0).expand_as(draft)
    counts = counts.scatter_add(1, ids, draft.to(counts.dtype))
    generated = counts > 0
    in_prompt = unpacked(prompt_bin_mask_ptr[request])[:, : logits_ptr.shape[1]]
    scale = torch.where(in_prompt | generated, repetition, 1.0)
    logits_ptr.mul_(torch.where(logits_ptr > 0, 1.0 / scale, scale))
    logits_ptr.sub_(frequency * counts)
    logits_ptr.sub_(presence * generated)


def bincount(
    expanded_idx_mapping_ptr: torch.Tensor,
    all_token_ids_ptr: torch.Tensor,
    prompt_len_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    prompt_bin_mask_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Count the tokens of new requests, whose rows are zero: a bit for each of the prompt, a count for those generated
    before the request was interrupted."""
    request = expanded_idx_mapping_ptr.long()
    vocabulary, words = output_bin_counts_ptr.shape[1], prompt_bin_mask_ptr.shape[1]
    tokens = all_token_ids_ptr[request].long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    prompt = place < prompt_len_ptr[request].unsqueeze(1)
    generated = (place < prefill_len_ptr[request].unsqueeze(1)) & ~prompt
    nowhere = words * 32
    seen = tokens.new_zeros((tokens.shape[0], nowhere + 1), dtype=torch.int32)
    seen.scatter_(1, torch.where(prompt, tokens, nowhere), 1)
    bits = seen[:, :nowhere].view(-1, words, 32) << torch.arange(32, dtype=torch.int32, device=seen.device)
    prompt_bin_mask_ptr[request] = bits.sum(dim=-1, dtype=torch.int32)
    counts = seen.zero_()
    counts.scatter_add_(1, torch.where(generated, tokens, nowhere), generated.to(torch.int32))
    output_bin_counts_ptr.index_add_(0, request, counts[:, :vocabulary])


def bias(
    logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    num_allowed_token_ids_ptr: torch.Tensor,
    allowed_token_ids_ptr: torch.Tensor,
    num_logit_bias_ptr: torch.Tensor,
    bias_token_ids_ptr: torch.Tensor,
    bias_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,
    min_lens_ptr: torch.Tensor,
    num_stop_token_ids_ptr: torch.Tensor,
    restore_when_all_masked_ptr: torch.Tensor,
    stop_token_ids_ptr: torch.Tensor,
    CHECK_ALL_MASKED_ROWS: bool,
    **_: Any,
) -> None:
    """Allowed tokens only, biases, and no stop token before the shortest length (unless that would leave no token).

    Lists of token ids are ``[R, longest list]``, with a request's count beside.
    """
    request = expanded_idx_mapping_ptr
    count = num_allowed_token_ids_ptr[request].unsqueeze(1)
    allowed = _marked(logits_ptr, allowed_token_ids_ptr[request], count)
    logits_ptr.masked_fill_((count > 0) & ~allowed, -_INFINITY)
    ids = bias_token_ids_ptr[request].long()
    listed = _columns(ids) < num_logit_bias_ptr[request].unsqueeze(1)
    logits_ptr.scatter_add_(1, torch.where(listed, ids, 0), torch.where(listed, bias_ptr[request], 0.0))
    early = (pos_ptr + 1 < min_lens_ptr[request]).unsqueeze(1)
    stops = _marked(logits_ptr, stop_token_ids_ptr[request], num_stop_token_ids_ptr[request].unsqueeze(1))
    without = logits_ptr.masked_fill(early & stops, -_INFINITY)
    if CHECK_ALL_MASKED_ROWS:
        none_left = without.amax(dim=1, keepdim=True) == -_INFINITY
        restored = none_left & (restore_when_all_masked_ptr[request] != 0).unsqueeze(1) & logits_ptr.isfinite()
        without = torch.where(restored, logits_ptr, without)
    logits_ptr.copy_(without)


def bad_words(
    logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    bad_word_token_ids_ptr: torch.Tensor,
    bad_word_offsets_ptr: torch.Tensor,
    num_bad_words_ptr: torch.Tensor,
    all_token_ids_ptr: torch.Tensor,
    prompt_len_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    input_ids_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Forbid the last token of every word whose others were just generated, or are drafts of rows before.

    A request's words lie one after the other in ``bad_word_token_ids_ptr`` ``[R, tokens]``; word ``w`` is
    ``[offsets[w], offsets[w + 1])`` of it, ``bad_word_offsets_ptr`` ``[R, words + 1]``.
    """
    request = expanded_idx_mapping_ptr
    words = bad_word_token_ids_ptr[request]
    offsets = bad_word_offsets_ptr[request]
    width = words.shape[1]
    used = _columns(offsets[:, 1:]) < num_bad_words_ptr[request].unsqueeze(1)
    starts, ends = offsets[:, :-1], torch.where(used, offsets[:, 1:], width + 1)
    place = _columns(words).to(ends.dtype).expand_as(words).contiguous()
    word = torch.searchsorted(ends.contiguous(), place, right=True).clamp_(max=ends.shape[1] - 1)
    start, end = starts.gather(1, word), ends.gather(1, word)
    before_last = place < end - 1
    known = total_len_ptr[request].unsqueeze(1)
    length = known + expanded_local_pos_ptr.unsqueeze(1)
    at = length - (end - 1 - start) + (place - start)  # where this token of the word would stand among the request's
    fits = length - (end - 1 - start) >= prompt_len_ptr[request].unsqueeze(1)
    there = all_token_ids_ptr[request.unsqueeze(1), at.clamp(min=0, max=all_token_ids_ptr.shape[1] - 1)]
    first = torch.arange(request.shape[0], device=request.device) - expanded_local_pos_ptr
    draft = (first.unsqueeze(1) + (at - known) + 1).clamp_(min=0, max=input_ids_ptr.shape[0] - 1)
    there = torch.where(at < known, there, input_ids_ptr[draft])
    differs = before_last & ~(fits & (there == words))
    missed = torch.zeros_like(ends).scatter_add_(1, word, differs.to(ends.dtype))
    forbidden = used & (missed == 0)
    last = words.gather(1, (ends - 1).clamp(min=0, max=width - 1).long()).long()
    vocabulary = logits_ptr.shape[1]
    mask = logits_ptr.new_zeros((logits_ptr.shape[0], vocabulary + 1), dtype=torch.bool)
    mask.scatter_(1, torch.where(forbidden, last, vocabulary), True)
    logits_ptr.masked_fill_(mask[:, :vocabulary], -_INFINITY)


def apply_grammar_bitmask(
    logits_ptr: torch.Tensor,
    logits_indices_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    bitmask_ptr: torch.Tensor,
    MASK_STRIDE: int,
    **_: Any,
) -> None:
    """Forbid what a grammar does: ``bitmask_ptr`` ``[m, vocabulary / 32]`` has a bit per token, 1 where it is allowed, for
    row ``logits_indices_ptr[m] % MASK_STRIDE`` of the request ``logits_indices_ptr[m] / MASK_STRIDE``, if it has that."""
    rows, vocabulary = logits_ptr.shape
    at = logits_indices_ptr.long()
    request = torch.div(at, MASK_STRIDE, rounding_mode="floor")
    row = cu_num_logits_ptr[request] + at % MASK_STRIDE
    row = torch.where(row < cu_num_logits_ptr[request + 1], row, rows)
    forbidden = logits_ptr.new_zeros((rows + 1, vocabulary), dtype=torch.bool)
    forbidden[row] = ~unpacked(bitmask_ptr)[:, :vocabulary]
    logits_ptr.masked_fill_(forbidden[:rows], -_INFINITY)


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """Bits of int32 words ``[n, w]`` as booleans ``[n, 32 w]``, the lowest bit first."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> bits) & 1).flatten(1).bool()


def _columns(values: torch.Tensor) -> torch.Tensor:
    return torch.arange(values.shape[1], device=values.device)


def _marked(logits: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``[n, vocabulary]``: the tokens among the first ``counts`` (``[n, 1]``) of ``ids`` (``[n, longest list]``)."""
    vocabulary = logits.shape[1]
    mask = logits.new_zeros((logits.shape[0], vocabulary + 1), dtype=torch.bool)
    mask.scatter_(1, torch.where(_columns(ids) < counts, ids.long(), vocabulary), True)
    return mask[:, :vocabulary]


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """float32 ``[n, vocabulary]`` of standard Gumbel noise: a hash of seed, position and token, so that a request draws
    the same noise in any batch. Upstream's definition (murmur3 over four 32-bit words), in int32, which wraps as its
    words do."""
    token = torch.arange(vocabulary, dtype=torch.int32, device=seeds.device)
    uniform = _uniform(_hashed(seeds, positions).unsqueeze(1), token)
    return -torch.log(-torch.log1p(-uniform))


def uniform_noise(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """float32 between 0 and 1 for each seed and position, of their broadcast shape; independent of the noise of tokens.

    Upstream takes Triton's generator, which would be 100 operators here.
    """
    state = _hashed(*torch.broadcast_tensors(seeds, positions))
    return _uniform(state, torch.full_like(state, _NO_TOKEN))


def _hashed(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    state = torch.zeros_like(seeds, dtype=torch.int32)
    for key in (seeds, seeds >> 32, positions.to(torch.int64)):
        state = _mix(state, _low_word(key))
    return state


def _uniform(state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    mixed = _finished(_mix(state, token) ^ 16)
    high, low = _shifted(mixed, 16), mixed & 0xFFFF
    return high.float() * _HALF_WORD + (low.float() + 0.5) * _WORD


def _low_word(value: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of int64 as the int32 with these bits."""
    low = value & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def _shifted(value: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right, of int32."""
    return (value >> by) & ((1 << (32 - by)) - 1)


def _rotated(value: torch.Tensor, by: int) -> torch.Tensor:
    return (value << by) | _shifted(value, 32 - by)


def _mix(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """One round of murmur3 (32 bit); the constants are its own, as signed words."""
    key = _rotated(key * -0x3361D2AF, 15) * 0x1B873593  # 0xCC9E2D51
    return _rotated(state ^ key, 13) * 5 - 0x19AB949C  # 0xE6546B64


def _finished(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shifted(state, 16)) * -0x7A143595  # 0x85EBCA6B
    state = (state ^ _shifted(state, 13)) * -0x3D4D51CB  # 0xC2B2AE35
    return state ^ _shifted(state, 16)
