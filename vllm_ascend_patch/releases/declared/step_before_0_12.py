# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that carry the step vector into releases without a decision function of their own: up to 0.11.0,
where the sync is ``DPMetadata.num_tokens_across_dp``, and 0.11.1 and 0.11.2, where it is ``_run_ar`` already.

Imports neither torch nor vLLM. What they do is in ``seams/step/``, above all in
``counts_before_0_12.py``.
"""

from __future__ import annotations

from typing import TypedDict

from vllm_ascend_patch.patching import Kind, Patch

from .step import DUMMY_RUN, EXECUTE_MODEL, NO_HOOK, SESSION

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"


class _Same(TypedDict):
    """What all of them have in common."""

    kind: Kind
    upstream: str
    remove_when: str


_SAME: _Same = {
    "kind": Kind.WRAP,
    "upstream": NO_HOOK,
    "remove_when": "the releases that ask before they decide how a batch runs are no longer supported",
}
_PREPARE_INPUTS_WHY = "The attention state and what the ranks must agree on are known before input preparation starts."

PATCHES: tuple[Patch, ...] = (
    Patch(
        id="dp-counts-session",
        target=f"{_RUNNER}.__init__",
        implementation="vllm_ascend_patch.seams.step.session:model_runner_init",
        releases="<0.12",
        **SESSION,
        **_SAME,
    ),
    Patch(
        id="dp-counts-prepare-inputs",
        target=f"{_RUNNER}._prepare_inputs",
        implementation="vllm_ascend_patch.seams.step.counts_before_0_12:prepare_inputs",
        releases="<0.11.1",
        reads=("scheduler_output",),
        why=_PREPARE_INPUTS_WHY,
        how="Posts the step vector asynchronously, then runs upstream's input preparation.",
        **_SAME,
    ),
    Patch(
        id="dp-counts-prepare-inputs-with-rows",
        target=f"{_RUNNER}._prepare_inputs",
        implementation="vllm_ascend_patch.seams.step.counts_before_0_12:prepare_inputs_with_rows",
        releases=">=0.11.1,<0.12",
        reads=("scheduler_output",),
        why=_PREPARE_INPUTS_WHY,
        how="The same, for an all-reduce that carries whether the ranks pad, too.",
        **_SAME,
    ),
    Patch(
        id="dp-counts-all-reduce",
        target="vllm.forward_context:DPMetadata.num_tokens_across_dp",
        implementation="vllm_ascend_patch.seams.step.counts_before_0_12:num_tokens_across_dp",
        releases="<0.11.1",  # from then on dp-all-reduce
        reads=("num_tokens",),
        why="One collective per step carries all metadata; upstream's blocks and carries one number.",
        how="Hands back the token counts of the agreement that was posted early, or is made here for dummy steps.",
        **_SAME,
    ),
    Patch(
        id="dp-counts-dummy-run",
        target=f"{_RUNNER}._dummy_run",
        implementation="vllm_ascend_patch.seams.step.counts_before_0_12:dummy_run",
        releases="<0.11.1",
        reads=("num_tokens",),
        why="Idle, profiling and capturing ranks send the same vector through the same function as busy ones.",
        how="Announces a dummy step. Its all-reduce follows where upstream has it, or before, if an idle rank has to know "
        "whether the others replay graphs.",
        **_SAME,
    ),
    Patch(
        id="dp-counts-dummy-run-with-rows",
        target=f"{_RUNNER}._dummy_run",
        implementation="vllm_ascend_patch.seams.step.dummy:dummy_run",
        releases=">=0.11.1,<0.12",
        reads=("num_tokens",),
        **DUMMY_RUN,
        **_SAME,
    ),
    Patch(
        id="dp-counts-idle-step",
        target="vllm.v1.worker.gpu_worker:Worker.execute_dummy_batch",
        implementation="vllm_ascend_patch.seams.step.dummy:execute_dummy_batch",
        releases="<0.12",
        why="The tokens of an idle rank's dummy step are padding; those of profiling are not.",
        how="Marks the dummy step inside as idle.",
        **_SAME,
    ),
    Patch(
        id="dp-counts-execute-model",
        target=f"{_RUNNER}.execute_model",
        implementation="vllm_ascend_patch.seams.step.phases:execute_model",
        releases="<0.12",
        reads=("scheduler_output",),
        **EXECUTE_MODEL,
        **_SAME,
    ),
)
