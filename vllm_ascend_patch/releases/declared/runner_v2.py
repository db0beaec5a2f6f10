# SPDX-License-Identifier: Apache-2.0
"""Declares the patches of model runner V2 (``vllm/v1/worker/gpu/``). Imports neither torch nor vLLM.

They are applied whichever runner serves, and met by V2 alone. What they do is in ``seams/port/runner_v2.py`` and
``seams/step/runner_v2.py``; Triton kernels are replaced through vLLM's own registry (``npu/kernel_overrides.py``).
"""

from __future__ import annotations

from typing import TypedDict

from vllm_ascend_patch.patching import Kind, Patch

from .step import DUMMY_RUN, EXECUTE_MODEL, NO_HOOK, SESSION

_GPU = "vllm.v1.worker.gpu"
_RUNNER = f"{_GPU}.model_runner:GPUModelRunner"
_PORT = "vllm_ascend_patch.seams.port.runner_v2"
_STEP = "vllm_ascend_patch.seams.step"
_RELEASES = ">=0.32"


class _Same(TypedDict):
    """What the patches that carry the step vector have in common."""

    kind: Kind
    releases: str
    upstream: str
    remove_when: str


_VECTOR: _Same = {
    "kind": Kind.WRAP,
    "releases": _RELEASES,
    "upstream": NO_HOOK,
    "remove_when": "the data-parallel step vector is no longer needed on model runner V2",
}

GATE = Patch(
    id="v2-gate",
    target="vllm.config.vllm:VllmConfig._validate_v2_model_runner",
    kind=Kind.WRAP,
    implementation=f"{_PORT}:validate",
    releases=_RELEASES,
    why="vLLM refuses model runner V2 without Triton; on NPUs its kernels are torch operators.",
    how="Answers the question about Triton with yes while the configuration is checked.",
    upstream="https://github.com/vllm-project/vllm/issues/57684",
    remove_when="vLLM asks the platform whether V2's kernels are there",
)
"""Its releases are those on which model runner V2 is served (``releases/runner.py``)."""

PATCHES: tuple[Patch, ...] = (
    GATE,
    Patch(
        id="v2-buffers",
        target=f"{_GPU}.buffer_utils:UvaBuffer",
        kind=Kind.REPLACE,
        implementation=f"{_PORT}:MirroredBuffer",
        releases=_RELEASES,
        why="Buffers that host and device share are CUDA's: vLLM has no such view of host memory on an NPU.",
        how="Pinned host memory beside device memory, copied when it is handed out and has changed.",
        upstream="none: NonUvaBuffer is for devices without pinned memory, and copies at every use",
        remove_when="vLLM lets a platform bring its buffers",
    ),
    Patch(
        id="v2-addresses",
        target=f"{_GPU}.block_table:BlockTables._make_ptr_tensor",
        kind=Kind.REPLACE,
        implementation=f"{_PORT}:tensors_for_addresses",
        releases=_RELEASES,
        why="Kernels over several block tables take their addresses, which torch operators cannot follow.",
        how="Hands the tensors themselves to the kernels that replace them.",
        upstream="none: the kernels are Triton's",
        remove_when="vLLM's block tables take a list of tensors",
    ),
    Patch(
        id="v2-power-of-two",
        target="vllm.triton_utils.importing:TritonPlaceholder.next_power_of_2",
        kind=Kind.ADD,
        implementation=f"{_PORT}:next_power_of_2",
        releases=_RELEASES,
        why="V2's launches ask Triton for it, whose placeholder lacks it.",
        how="The same arithmetic on host integers.",
        upstream="none: the placeholder has cdiv alone",
        remove_when="the placeholder has next_power_of_2",
    ),
    Patch(
        id="v2-greedy",
        target=f"{_GPU}.sample.sampler:Sampler._sample_random",
        kind=Kind.WRAP,
        implementation=f"{_PORT}:sample_random",
        releases=_RELEASES,
        reads=("processed_logits", "idx_mapping_np", "top_k", "top_p"),
        why="One kernel samples greedy and random rows; in torch operators the noise alone costs more than a greedy step.",
        how="A step of greedy requests alone, known on the host, takes the largest logit; any other goes on as upstream's.",
        upstream="none: for a Triton kernel it is one launch either way",
        remove_when="vLLM's sampler tells greedy batches apart",
    ),
    Patch(
        id="v2-greedy-drafts",
        target=f"{_GPU}.spec_decode.rejection_sampler:RejectionSampler._verify",
        kind=Kind.WRAP,
        implementation=f"{_PORT}:verify",
        releases=_RELEASES,
        reads=("idx_mapping_np",),
        why="The kernels verify greedy and random requests alike; the noise takes most of the operators.",
        how="Tells the kernels that replace upstream's when all requests are greedy, so that they draw none.",
        upstream="none: for Triton kernels it is one launch either way",
        remove_when="vLLM's sampler tells greedy batches apart",
    ),
    Patch(
        id="v2-ngram",
        target=f"{_GPU}.spec_decode.ngram.speculator:NgramGPUSpeculator.__init__",
        kind=Kind.WRAP,
        implementation=f"{_PORT}:drafts_from_prompts",
        releases=_RELEASES,
        why="Drafts from prompts ask for Triton once more; their kernels are torch operators, too.",
        how="Answers the question with yes while the drafter is built.",
        upstream="https://github.com/vllm-project/vllm/issues/57684",
        remove_when="vLLM asks the platform whether V2's kernels are there",
    ),
    Patch(
        id="v2-draft-lengths",
        target=f"{_GPU}.spec_decode.speculator:DraftModelSpeculator._build_attn_metadata",
        kind=Kind.WRAP,
        implementation=f"{_PORT}:draft_metadata",
        releases=_RELEASES,
        reads=("num_reqs",),
        why="Attention takes key lengths from the host, where upstream has a bound that counts refused drafts.",
        how="Reads the exact ones from the device before each later forward of a drafter.",
        upstream="none: upstream's attention reads them on the device",
        remove_when="the attention operator takes lengths from the device",
    ),
    Patch(
        id="v2-capture-inputs",
        target=f"{_GPU}.cudagraph_utils:prepare_inputs_to_capture",
        kind=Kind.WRAP,
        implementation=f"{_PORT}:prepare_inputs_to_capture",
        releases=_RELEASES,
        reads=("full_cudagraph",),
        aliases=(f"{_GPU}.spec_decode.target_dependent_ar.cudagraph_utils:prepare_inputs_to_capture",),
        why="While pieces are captured attention runs eagerly over slots of -1, which the cache operator refuses.",
        how="Leaves attention metadata out for pieces, as V1 does: attention then writes nothing.",
        upstream="none: upstream's kernels skip negative slots",
        remove_when="the cache operator skips negative slots",
    ),
    Patch(
        id="v2-memory-profile",
        target=f"{_RUNNER}.profile_run",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.memory_profile:profile_run_v2",
        releases=_RELEASES,
        why="Upstream profiles the largest batch only, which need not be the method that takes the most memory.",
        how="Adds one dummy pass at MC2's capacity where the largest batch takes another method.",
        upstream="none: upstream has one communication method per deployment",
        remove_when="vLLM profiles a list of token counts",
    ),
    Patch(
        id="v2-session",
        target=f"{_RUNNER}.__init__",
        implementation=f"{_STEP}.session:model_runner_init",
        **SESSION,
        **_VECTOR,
    ),
    Patch(
        id="v2-execute-model",
        target=f"{_RUNNER}.execute_model",
        implementation=f"{_STEP}.runner_v2:execute_model",
        reads=("scheduler_output", "dummy_run", "skip_attn_for_dummy_run", "is_profile"),
        calls=("gather_batch_req_state",),
        why="A decoding step's vote is known before any state is touched; a rank that fails inside must be reported.",
        how=EXECUTE_MODEL["how"] + " Posts a decoding step's vector first, and lets dummy steps run without attention.",
        **_VECTOR,
    ),
    Patch(
        id="v2-gather-state",
        target=f"{_RUNNER}.gather_batch_req_state",
        implementation=f"{_STEP}.runner_v2:gather_batch_req_state",
        reads=("scheduler_output", "dummy_run"),
        why="What ranks must agree on for a step with prompts is known once upstream has gathered its state.",
        how="Posts the vector there, before inputs are prepared.",
        **_VECTOR,
    ),
    Patch(
        id="v2-agreement",
        target=f"{_GPU}.dp_utils:dispatch_cg_and_sync_dp",
        implementation=f"{_STEP}.runner_v2:dispatch_cg_and_sync_dp",
        reads=("num_reqs", "num_tokens", "uniform_token_count", "dp_size", "max_query_len", "dp_sync_state"),
        aliases=(
            f"{_GPU}.model_runner:dispatch_cg_and_sync_dp",
            f"{_GPU}.spec_decode.target_dependent_ar.speculator:dispatch_cg_and_sync_dp",
            f"{_GPU}.spec_decode.multi_module_mtp.speculator:dispatch_cg_and_sync_dp",
            f"{_GPU}.spec_decode.dflash.speculator:dispatch_cg_and_sync_dp",
        ),
        why="One exchange per step carries all metadata, and an eager step needs its answer only at the forward.",
        how="Upstream decides and post-processes; its exchange is answered from the vector, in eager steps when read.",
        **_VECTOR,
    ),
    Patch(
        id="v2-propose",
        target=f"{_GPU}.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator.propose",
        implementation=f"{_STEP}.runner_v2:propose",
        reads=("dp_sync_state", "dummy_run", "skip_attn_for_dummy_run"),
        why="Drafters derive their forwards' agreements from the step's, which an eager step has as a promise.",
        how="Hands them the agreement itself; drafts of dummy steps run without attention.",
        **_VECTOR,
    ),
    Patch(
        id="v2-dummy-run",
        target=f"{_RUNNER}._dummy_run",
        implementation=f"{_STEP}.dummy:dummy_run",
        reads=("num_tokens",),
        calls=("execute_model",),
        **DUMMY_RUN,
        **_VECTOR,
    ),
    Patch(
        id="v2-sample-tokens",
        target=f"{_RUNNER}.sample_tokens",
        implementation=f"{_STEP}.phases:sample_tokens",
        why="Sampling is a phase of the step in which a rank can fail or stop.",
        how="As for execute_model.",
        **_VECTOR,
    ),
    Patch(
        id="v2-capture",
        target=f"{_RUNNER}.capture_model",
        implementation=f"{_STEP}.runner_v2:capture_model",
        why="Ranks capture the same graphs one after the other, without an agreement about each.",
        how="No agreement is compared with what is captured, and the phase says what the rank does.",
        **_VECTOR,
    ),
)
