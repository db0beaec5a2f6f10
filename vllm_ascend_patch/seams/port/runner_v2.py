# SPDX-License-Identifier: Apache-2.0
"""What model runner V2 lacks on a device without Triton and without memory that host and device share.

Its kernels are ``core/kernels/``'s; its part of the step sync is ``seams/step/runner_v2.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy
import torch

from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of


def validate(original: Any, config: Any) -> None:
    """Upstream's check of a configuration for V2, to which Triton is there: its kernels are replaced."""
    with _triton_answered(original):
        original(config)


def drafts_from_prompts(original: Any, speculator: Any, *args: Any, **kwargs: Any) -> None:
    """The constructor of upstream's drafter without a model, which asks for Triton, too."""
    with _triton_answered(original):
        original(speculator, *args, **kwargs)


@contextmanager
def _triton_answered(function: Any) -> Iterator[None]:
    names = function.__globals__
    found, names["HAS_TRITON"] = names.get("HAS_TRITON"), True
    try:
        yield
    finally:
        names["HAS_TRITON"] = found


def draft_metadata(original: Callable[..., Any], speculator: Any, *args: Any, **kwargs: Any) -> Any:
    """Attention metadata of a drafter's later forwards with exact lengths, read from the device: upstream's on the host
    count the drafts that were refused."""
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    by_layer = original(speculator, **bound)
    lens = speculator.input_buffers.seq_lens[: bound["num_reqs"]].tolist()
    for metadata in {id(each): each for each in by_layer.values()}.values():
        metadata.correct_lengths(lens)
    return by_layer


class MirroredBuffer:
    """Pinned host memory (``cpu``, and ``np`` over it) with device memory that ``uva`` brings up to date.

    Nothing is copied as long as the host side holds what was copied before, which is the common case: most of these
    buffers change when a request comes, and are handed out at every step. Upstream rotates as many as there are steps
    in flight, so a copy under way is not overwritten. The host side is made on first use: large tensors are only
    written on the device.
    """

    def __init__(self, size: int | Sequence[int], dtype: torch.dtype) -> None:
        from vllm.platforms import current_platform

        self._device = torch.zeros(size, dtype=dtype, device=current_platform.device_type)

    @cached_property
    def cpu(self) -> torch.Tensor:
        return torch.zeros(self._device.shape, dtype=self._device.dtype, device="cpu", pin_memory=True)

    @cached_property
    def np(self) -> numpy.ndarray:
        return self.cpu.numpy()

    @cached_property
    def _last(self) -> numpy.ndarray:
        return numpy.zeros_like(self.np)

    def uva(self, n: int | None = None) -> torch.Tensor:
        """The first ``n`` rows on the device, all without ``n``."""
        if "cpu" not in vars(self):
            return self._device if n is None else self._device[:n]
        mine, last, device = (
            (self.cpu, self._last, self._device) if n is None else (self.cpu[:n], self._last[:n], self._device[:n])
        )
        now = mine.numpy()
        if not numpy.array_equal(now, last):
            last[...] = now
            device.copy_(mine, non_blocking=True)
        return device


def tensors_for_addresses(tables: Any, x: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """In place of a tensor of addresses: the tensors."""
    return tuple(x)


def next_power_of_2(triton: Any, n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def sample_random(original: Callable[..., Any], sampler: Any, *args: Any, **kwargs: Any) -> Any:
    """Sampled tokens ``[n]`` and the logits that they were sampled from."""
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    temperatures = sampler.sampling_states.temperature.np[bound["idx_mapping_np"]]
    if bound["top_k"] is None and bound["top_p"] is None and not temperatures.any():
        logits = bound["processed_logits"]
        return logits.argmax(dim=-1), logits
    return original(sampler, *args, **kwargs)


def verify(original: Callable[..., Any], rejection: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's verification of drafts; its kernels are told whether all requests are greedy, which the host knows."""
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    step = serving.current().step
    step.greedy = not rejection.sampler.sampling_states.temperature.np[bound["idx_mapping_np"]].any()
    try:
        return original(rejection, **bound)
    finally:
        step.greedy = False


def prepare_inputs_to_capture(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Attention metadata and slots of a capture; no metadata where attention runs between captured pieces. In a graph of a
    whole step attention records its calls."""
    bound = dict(zip(parameters_of(original), args, strict=False)) | kwargs
    step = serving.current().step
    dummy, step.dummy = step.dummy, True
    try:
        state = original(*args, **kwargs)
    finally:
        step.dummy = dummy
    if not bound["full_cudagraph"]:
        return state._replace(attn_metadata=None)
    for metadata in state.attn_metadata.values():
        metadata.tasks = step.tasks
    return state
