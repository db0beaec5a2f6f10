# SPDX-License-Identifier: Apache-2.0
"""Script: breaks one rule of the step sync at a time and shows which check notices.

    python -m tests.dp.mutations SEED       (under the virtual NPU)

Each mutation is applied in this process only, a check of the suite runs, and what it failed with is printed. A check that
passes all the same is the failure here.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm.v1.worker import dp_utils

from vllm_ascend_patch.core.dp import DPSession, StepAgreement, Vote, agree
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.step import prepare

from . import fuzz, test_moe_choice
from .worlds import matrix

fuzz.TIMEOUT = 3.0


@contextmanager
def replaced(*attributes: tuple[Any, str, Any]) -> Iterator[None]:
    """Have (owner, name, value) for the block."""
    with pytest.MonkeyPatch.context() as scope:
        for attribute in attributes:
            scope.setattr(*attribute)
        yield


@contextmanager
def no_dummy_run() -> Iterator[None]:
    """An idle rank runs its dummy step without telling the others."""

    def alone(session: DPSession, vote: Vote) -> StepAgreement:
        session._dummy = None
        mine = replace(vote.vector(), idle=True)
        return agree(matrix([mine] * session.channel.transport.size))

    with replaced((DPSession, "_resolve_dummy", alone)):
        yield


@contextmanager
def no_sync_in_eager() -> Iterator[None]:
    """A rank that would run eager takes its own count for the others', as upstream once did."""
    all_reduce, own_vote = dp_utils._run_ar, prepare.own_vote

    def graphs_only(*args: Any, **kwargs: Any) -> torch.Tensor:
        if serving.current().step.capturing or kwargs["cudagraph_mode"]:
            return all_reduce(*args, **kwargs)
        own = (kwargs["orig_num_tokens_per_ubatch"], kwargs["padded_num_tokens_per_ubatch"], 0, 0)
        return torch.tensor(own, dtype=torch.int32).repeat(kwargs["parallel_config"].data_parallel_size, 1).T

    def vote_for_graphs(*args: Any) -> Vote | None:
        vote = own_vote(*args)
        return vote if vote is not None and vote.graph_mode else None

    with replaced((dp_utils, "_run_ar", graphs_only), (prepare, "own_vote", vote_for_graphs)):
        yield


@contextmanager
def drafters_not_foreseen() -> Iterator[None]:
    """No step says which drafter forwards follow it."""
    with replaced((prepare, "plan_for_step", lambda runner, scheduled: None)):
        yield


@contextmanager
def local_count_for_the_moe_choice() -> Iterator[None]:
    """The method follows this rank's own tokens."""
    fields = test_moe_choice.step_tokens.forward_context_fields

    def local(**context: Any) -> dict[str, Any]:
        found = fields(**context)
        name = test_moe_choice.step_tokens.FIELD
        return found | {name: replace(found[name], per_dp_rank=(context["num_tokens"],), _steps={})}

    with replaced((test_moe_choice.step_tokens, "forward_context_fields", local)):
        yield


def run_fuzz(seed: int) -> None:
    fuzz.main(2, 25, seed)


def run_moe_choice(seed: int) -> None:
    test_moe_choice.test_all_ranks_choose_alike_and_idle_ranks_have_no_active_token()


CHECKS: list[tuple[Callable[[], Any], Callable[[int], None]]] = [
    (no_dummy_run, run_fuzz),
    (no_sync_in_eager, run_fuzz),
    (drafters_not_foreseen, run_fuzz),
    (local_count_for_the_moe_choice, run_moe_choice),
]


def main(seed: int) -> int:
    missed = 0
    for check in dict.fromkeys(check for _, check in CHECKS):
        check(seed)  # without a mutation it passes
    for mutation, check in CHECKS:
        try:
            with mutation():
                check(seed)
        except AssertionError as error:
            print(f"CAUGHT {mutation.__name__} by {check.__name__}: {str(error).splitlines()[0][:300]}", flush=True)
        else:
            missed += 1
            print(f"MISSED {mutation.__name__} by {check.__name__}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
