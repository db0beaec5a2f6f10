# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that carry the step vector into stock vLLM. Imports neither torch nor vLLM.

What they do is in ``seams/step/``. The words that ``step_before_0_12.py`` needs, too, are public.
"""

from __future__ import annotations

from typing import TypedDict

from vllm_ascend_patch.patching import Kind, Patch

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
NO_HOOK = "none: vLLM has no hook between a step's schedule and its data-parallel all-reduce"
_WITH_VECTOR = (
    "the patches of the data-parallel step vector go together: remove them when the vector is no longer needed"
)


class Words(TypedDict):
    """What two shapes of one patch have in common."""

    why: str
    how: str


SESSION: Words = {
    "why": "All data-parallel ranks must prove that they run the same thing, and watch each other, before weights load.",
    "how": "After upstream's constructor: own process groups, fingerprint exchange, watchdog, choice of the transport.",
}
DUMMY_RUN: Words = {
    "why": "Idle, profiling and capturing ranks send the same vector through the same function as busy ones.",
    "how": "Announces a dummy step; its all-reduce follows where upstream has it.",
}
EXECUTE_MODEL: Words = {
    "why": "A rank that fails or stops inside a step must be reported with the phase that it was in.",
    "how": "Keeps this rank's phase up to date, and tells the other ranks about an exception before it goes on.",
}

PATCHES: tuple[Patch, ...] = (
    Patch(
        id="dp-session",
        target=f"{_RUNNER}.__init__",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.session:model_runner_init",
        releases=">=0.12",
        **SESSION,
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
    Patch(
        id="dp-prepare-inputs",
        target=f"{_RUNNER}._prepare_inputs",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.prepare:prepare_inputs",
        releases=">=0.12",
        reads=("scheduler_output",),
        why="The attention state and everything the ranks must agree on are known before input preparation starts.",
        how="Decides the attention state, lets upstream's own code compute this rank's vote up to its all-reduce, posts it "
        "asynchronously, then runs upstream's input preparation while the collective is under way.",
        upstream="https://github.com/vllm-project/vllm/pull/44636 moves the all-reduce to a side stream, but still waits "
        "for it at once",
        remove_when="vLLM posts the data-parallel metadata before it prepares inputs",
    ),
    Patch(
        id="dp-all-reduce",
        target="vllm.v1.worker.dp_utils:_run_ar",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.all_reduce:run_ar",
        releases=">=0.11.1",
        reads=(
            "should_ubatch",
            "orig_num_tokens_per_ubatch",
            "padded_num_tokens_per_ubatch",
            "parallel_config",
        ),
        why="One collective per step carries all metadata; upstream's blocks, once for the step and again for each drafter.",
        how="Hands back the rows of the agreement that was posted early, foreseen, or is made here for dummy steps.",
        upstream="https://github.com/vllm-project/vllm/issues/24105 describes the cost",
        remove_when="vLLM posts the data-parallel metadata before it prepares inputs",
    ),
    Patch(
        id="dp-dummy-run",
        target=f"{_RUNNER}._dummy_run",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.dummy:dummy_run",
        releases=">=0.12",
        reads=("num_tokens",),
        calls=("_determine_batch_execution_and_padding",),
        **DUMMY_RUN,
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
    Patch(
        id="dp-idle-step",
        target="vllm.v1.worker.gpu_worker:Worker.execute_dummy_batch",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.dummy:execute_dummy_batch",
        releases=">=0.12",
        calls=("_dummy_run",),
        why="The tokens of an idle rank's dummy step are padding; those of profiling and capture are not.",
        how="Marks the dummy step inside as idle.",
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
    Patch(
        id="dp-execute-model",
        target=f"{_RUNNER}.execute_model",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.phases:execute_model",
        releases=">=0.12",
        reads=("scheduler_output",),
        calls=("_prepare_inputs", "_determine_batch_execution_and_padding"),
        **EXECUTE_MODEL,
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
    Patch(
        id="dp-sample-tokens",
        target=f"{_RUNNER}.sample_tokens",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.phases:sample_tokens",
        releases=">=0.12",
        why="Sampling and drafting are a phase of the step in which a rank can fail or stop.",
        how="As for execute_model.",
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
    Patch(
        id="dp-forward",
        target=f"{_RUNNER}._model_forward",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.step.phases:model_forward",
        releases=">=0.11.1",
        why="The trace shows where the forward begins and ends.",
        how="Times the call when a trace is being written; otherwise only names the phase.",
        upstream=NO_HOOK,
        remove_when=_WITH_VECTOR,
    ),
)
