# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that carry the step vector into releases without a decision function of their own: up to 0.11.0,
where the sync is ``DPMetadata.num_tokens_across_dp``, and 0.11.1 and 0.11.2, where it is ``_run_ar`` already.

Imports neither torch nor vLLM. What they do is in ``seams/step/``, above all in
``counts_before_0_12.py``.
"""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_RELEASES = "<0.12"
_UPSTREAM = "none: vLLM has no hook between a step's schedule and its data-parallel all-reduce"
_REMOVE_WHEN = "the releases that ask before they decide how a batch runs are no longer supported"


def _wrap(
    name: str,
    target: str,
    implementation: str,
    why: str,
    how: str,
    reads: tuple[str, ...] = (),
    releases: str = _RELEASES,
) -> Patch:
    return Patch(
        id=f"dp-counts-{name}",
        target=target,
        kind=Kind.WRAP,
        implementation=f"vllm_ascend_patch.seams.{implementation}",
        releases=releases,
        reads=reads,
        why=why,
        how=how,
        upstream=_UPSTREAM,
        remove_when=_REMOVE_WHEN,
    )


PATCHES: tuple[Patch, ...] = (
    _wrap(
        "session",
        f"{_RUNNER}.__init__",
        "step.session:model_runner_init",
        why="All data-parallel ranks must prove that they run the same thing, and watch each other, before weights load.",
        how="After upstream's constructor: own process groups, fingerprint exchange, watchdog, choice of the transport.",
    ),
    _wrap(
        "prepare-inputs",
        f"{_RUNNER}._prepare_inputs",
        "step.counts_before_0_12:prepare_inputs",
        why="The attention state and what the ranks must agree on are known before input preparation starts.",
        how="Posts the step vector asynchronously, then runs upstream's input preparation.",
        reads=("scheduler_output",),
        releases="<0.11.1",
    ),
    _wrap(
        "prepare-inputs-with-rows",
        f"{_RUNNER}._prepare_inputs",
        "step.counts_before_0_12:prepare_inputs_with_rows",
        why="The attention state and what the ranks must agree on are known before input preparation starts.",
        how="The same, for an all-reduce that carries whether the ranks pad, too.",
        reads=("scheduler_output",),
        releases=">=0.11.1,<0.12",
    ),
    _wrap(
        "all-reduce",
        "vllm.forward_context:DPMetadata.num_tokens_across_dp",
        "step.counts_before_0_12:num_tokens_across_dp",
        why="One collective per step carries all metadata; upstream's blocks and carries one number.",
        how="Hands back the token counts of the agreement that was posted early, or is made here for dummy steps.",
        reads=("num_tokens",),
        releases="<0.11.1",  # from then on dp-all-reduce
    ),
    _wrap(
        "dummy-run",
        f"{_RUNNER}._dummy_run",
        "step.counts_before_0_12:dummy_run",
        why="Idle, profiling and capturing ranks send the same vector through the same function as busy ones.",
        how="Announces a dummy step. Its all-reduce follows where upstream has it, or before, if an idle rank has to know "
        "whether the others replay graphs.",
        reads=("num_tokens",),
        releases="<0.11.1",
    ),
    _wrap(
        "dummy-run-with-rows",
        f"{_RUNNER}._dummy_run",
        "step.dummy:dummy_run",
        why="Idle, profiling and capturing ranks send the same vector through the same function as busy ones.",
        how="Announces a dummy step; its all-reduce follows where upstream has it.",
        reads=("num_tokens",),
        releases=">=0.11.1,<0.12",
    ),
    _wrap(
        "idle-step",
        "vllm.v1.worker.gpu_worker:Worker.execute_dummy_batch",
        "step.dummy:execute_dummy_batch",
        why="The tokens of an idle rank's dummy step are padding; those of profiling are not.",
        how="Marks the dummy step inside as idle.",
    ),
    _wrap(
        "execute-model",
        f"{_RUNNER}.execute_model",
        "step.phases:execute_model",
        why="A rank that fails or stops inside a step must be reported with the phase that it was in.",
        how="Keeps this rank's phase up to date, and tells the other ranks about an exception before it goes on.",
        reads=("scheduler_output",),
    ),
)
