# SPDX-License-Identifier: Apache-2.0
"""When upstream is asked for this rank's vote: at each step, but decoding steps which look alike share the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.seams.step.all_reduce import run_ar
from vllm_ascend_patch.seams.step.batch import attention_of
from vllm_ascend_patch.seams.step.vote import own_vote


def all_reduce(
    should_ubatch: Any, orig_num_tokens_per_ubatch: Any, padded_num_tokens_per_ubatch: Any, cudagraph_mode: Any
) -> Any:
    """The parameters of upstream's; never called."""


class Runner:
    """Pads to fours; a graph for each count without adapters."""

    def __init__(self) -> None:
        self.asked = 0
        self.input_batch: Any = None
        self.microbatching = True

    def _allow_microbatching(self, num_reqs: int, scheduled: np.ndarray) -> bool:
        return self.microbatching

    def _determine_batch_execution_and_padding(
        self,
        num_tokens: int,
        num_reqs: int,
        num_scheduled_tokens_np: np.ndarray,
        max_num_scheduled_tokens: int,
        allow_microbatching: bool = True,
        num_encoder_reqs: int = 0,
    ) -> None:
        self.asked += 1
        assert max_num_scheduled_tokens == num_scheduled_tokens_np.max()
        graph = not self.input_batch.lora_id_to_lora_request and not num_encoder_reqs
        run_ar(all_reduce, allow_microbatching, num_tokens, -(-num_tokens // 4) * 4, int(graph))

    def vote(self, scheduled: list[int], computed: int, adapters: int = 0, encoders: int = 0) -> Vote | None:
        count = len(scheduled)
        self.input_batch = SimpleNamespace(
            num_reqs=count,
            num_computed_tokens_cpu=np.full(count, computed),
            num_prompt_tokens=np.full(count, 4),
            lora_id_to_lora_request=dict.fromkeys(range(adapters)),
        )
        output = SimpleNamespace(
            total_num_scheduled_tokens=sum(scheduled),
            scheduled_encoder_inputs=dict.fromkeys(range(encoders)),
            scheduled_spec_decode_tokens={},
        )
        tokens = np.array(scheduled, dtype=np.int32)
        return own_vote(self, output, tokens, attention_of(self, output, tokens))


def test_decoding_steps_of_the_same_shape_ask_once() -> None:
    runner = Runner()
    for _ in range(3):
        assert runner.vote([1] * 5, computed=9) == Vote(5, 8, True, 1)
        assert runner.vote([1] * 4, computed=9) == Vote(4, 4, True, 1)
    assert runner.asked == 2


def test_whatever_upstream_looks_at_tells_decoding_steps_apart() -> None:
    runner = Runner()
    assert runner.vote([1], computed=9) == Vote(1, 4, True, 1)
    assert runner.vote([1], computed=9, adapters=1) == Vote(1, 4, True, 0)
    assert runner.vote([1], computed=9, encoders=1) == Vote(1, 4, True, 0)
    runner.microbatching = False
    assert runner.vote([1], computed=9) == Vote(1, 4, False, 1)
    assert runner.asked == 4


def test_prompts_and_other_runners_always_ask() -> None:
    runner, other = Runner(), Runner()
    for number in (1, 2):
        assert runner.vote([1, 1], computed=0) == Vote(2, 4, True, 1)
        assert runner.vote([4, 1], computed=0) == Vote(5, 8, True, 1)
        assert runner.asked == 2 * number
    runner.vote([1, 1], computed=9)
    other.vote([1, 1], computed=9)
    assert (runner.asked, other.asked) == (5, 1)
