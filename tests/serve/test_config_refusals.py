# SPDX-License-Identifier: Apache-2.0
"""What vLLM's configuration alone tells is refused while it is made, in the user's process, with what to do; and what was
chosen for other devices is taken back with a line in the log. One process makes all configurations."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.installed import HAS_INT8_EXPERTS, HAS_LATENT_ATTENTION, HAS_MODELSLIM, vllm_file
from tests.support.processes import result_of
from vllm_ascend_patch.releases import guard, runner
from vllm_ascend_patch.releases.mxfp4 import mxfp4_obstacle

from .scripts import job_for, run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

HERE = "not supported on Ascend NPUs by this port"
REFUSED = {
    "window with CANN 8.5": (
        "sliding-window attention over 256 tokens cannot be served by the installed CANN (npu_fused_infer_attention_score",
        "--max-model-len 256 or less",
    ),
    "window, many requests": (
        "meet 4097 requests in a step, at most 4096 are supported on Ascend NPUs with sliding windows or sinks",
        "lower --max-num-seqs",
    ),
    "head size 24": ("attention with head size 24, 6 query heads and 6 KV heads per rank", "multiple of 16"),
    "sinks in float16": (f"gpt-oss: attention sinks in float16 are {HERE}", "Start with --dtype bfloat16"),
    "hybrid": (f"in place of keys and values (mamba) are {HERE}", "Choose another model"),
    "latent": ("multi-head latent attention (MLA) with a latent (kv_lora_rank) of 256", "Set VLLM_MLA_DISABLE=1"),
    "latent heads": ("256 query heads per rank: at most 128 are supported", "Raise --tensor-parallel-size"),
    "latent sparse": ("sparse attention (sparse MLA, as in DeepSeek V3.2 and GLM-5)", "Choose such a model"),
    "latent fp8": ("this checkpoint: fp8 weights, in blocks", "Take a bfloat16 or W8A8 checkpoint"),
    "latent float32": ("dtype float32 cannot be served", "Start with --dtype bfloat16"),
    "latent block": ("--block-size 192 is not supported on Ascend NPUs", "give such a multiple"),
    "latent layout": (f"with VLLM_KV_CACHE_LAYOUT=BLHNC is {HERE}", "Unset it"),
    "latent requests": (
        "meet 4097 requests in a step, at most 4096 are supported on Ascend NPUs with multi-head latent attention",
        "lower --max-num-seqs",
    ),
    "latent blocks": ("--num-gpu-blocks-override 32768: at most 32767 can be indexed", "Lower it"),
    "latent connector": (f"with --kv-transfer-config is {HERE}", "Start without it"),
    "latent prefill": ("the MLA prefill backend FLASH_ATTN does not run on Ascend NPUs", "leave it out"),
    "latent drafts": ("with 16 speculative tokens is not supported", "Lower num_speculative_tokens to 15"),
    "scaled in float16": ("float16 gives wrong results with routed_scaling_factor 1.5", "start with --dtype bfloat16"),
    "images": (f"images: requests with image are {HERE}", """Start with --limit-mm-per-prompt '{"image": 0}'"""),
    "clip": ("OlmoeForCausalLM gives wrong results: vLLM does not clamp queries, keys and", "Choose another model"),
    "mxfp4 of another model": (f"mxfp4 weights are {HERE}", "Take a bfloat16 checkpoint of this model"),
    "awq": (f"this checkpoint: weights in AWQ's layout (quantisation 'awq') are {HERE}", "Take such a checkpoint"),
    "gptq": (f"this checkpoint: weights in GPTQ's layout (quantisation 'gptq') are {HERE}", "Take such a checkpoint"),
    "bitsandbytes": (f"weights in bitsandbytes' format (quantisation 'bitsandbytes') are {HERE}", "Take such a"),
    "unknown to vLLM": (f"this checkpoint: weights quantised by 'hqq' are {HERE}", "Take such a checkpoint"),
    "modelopt": (f"this checkpoint: weights in ModelOpt's formats (quantisation 'modelopt') are {HERE}", "Take such a"),
    "asymmetric int4": (
        "has weights (int4, groups of 32, asymmetric; pack-quantized) and activations as",
        "Take such a",
    ),
    "fp8 by option": (
        f"this checkpoint: fp8 weights, in blocks with a scale each or not, are {HERE}",
        "If --quantization fp8 asks for it, leave the option out.",
    ),
    "connector": (f"--kv-transfer-config with ExampleConnector is {HERE}", "or start without the option"),
    "lora": (f"--enable-lora is {HERE}", "Merge the adapter into the checkpoint"),
    "offload": (f"--cpu-offload-gb 1 is {HERE}", "Start without it"),
    "offload by layers": (f"--offload-group-size 2 is {HERE}", "Start without it"),
    "routed experts": (f"--enable-return-routed-experts is {HERE}", "Start without it"),
    "fault tolerance": (f"--enable-fault-tolerance is {HERE}", "Start without it"),
    "batch invariant": (f"VLLM_BATCH_INVARIANT=1 is {HERE}", "Unset it"),
    "attention backend": (f"--attention-backend FLASH_ATTN is {HERE}", "Leave the option out"),
    "tp 3": ("--tensor-parallel-size 3 does not divide the vocabulary of 512 (padded)", "Sizes that do: 1, 2."),
}
OURS = {
    "all2all": "allgather_reducescatter",
    "experts": "auto",
    "tokens": 128,
    "window": None,
    "cache window": None,
    "quantization": None,
}
SERVED: dict[str, dict[str, Any]] = {
    "served": OURS,
    "short requests": OURS,
    "window of all": OURS,
    "window": OURS | {"window": 256, "cache window": 256},
    "plain": OURS,
    "latent served": OURS,
    "scaled in bfloat16": OURS,
    "text beside images": OURS,
    # 2048 is what a serve gets without the option; upstream cuts it to 256 for this backend.
    "deepep": OURS | {"tokens": 2048},
    "deepep with a budget": OURS | {"tokens": 256},
    "moe backend": OURS,
    "small window": OURS | {"tokens": 256},
}
if not HAS_LATENT_ATTENTION:
    too_old = ("the first release that serves it", "Set VLLM_MLA_DISABLE=1")
    said_before = ("latent heads", "latent sparse", "latent fp8", "latent float32")
    REFUSED |= {case: too_old for case in REFUSED if case.startswith("latent ") and case not in said_before}
    REFUSED["latent served"] = too_old
    del SERVED["latent served"]
if HAS_MODELSLIM:
    SERVED |= {case: OURS | {"quantization": "ascend"} for case in ("modelslim", "modelslim by option")}
    REFUSED |= {
        "modelslim of another type": (
            f"o_proj.weight is W4A4_DYNAMIC, which is {HERE}",
            "Export it anew with msModelSlim",
        ),
        "modelslim without a scale": (
            "the checkpoint lacks model.layers.0.mlp.experts.0.up_proj.weight_scale: ",
            "[2, 1] is expected beside model.layers.0.mlp.experts.0.up_proj.weight in weights.safetensors",
        ),
        "modelslim int4 balanced": (
            "expert load balancing of int4 experts is not supported on Ascend NPUs",
            "leave eplb_config out",
        ),
        "no modelslim": ("--quantization ascend needs a ModelSlim checkpoint, and ", "leave the option out"),
    }
    SERVED["int4"] = OURS | {"quantization": "compressed-tensors"}
    REFUSED |= {
        f"{name} with load balancing": (
            "expert load balancing (eplb_config) of int4 experts",
            "Leave eplb_config out",
        )
        for name in ("int4", "w4a8")
    }
    REFUSED["w4a8"] = ("int4 experts of hidden size ", "both have to be multiples of 256")
else:
    too_old_for_int4 = ("int4 weights (compressed-tensors W4A16) are not supported on", "Install such a release")
    REFUSED |= dict.fromkeys(("int4", "int4 with load balancing"), too_old_for_int4)
    too_old_for_w4a8 = ("int4 weights (compressed-tensors W4A8) are not supported on", "Install such a release")
    REFUSED |= dict.fromkeys(("w4a8", "w4a8 with load balancing"), too_old_for_w4a8)
    REFUSED |= {
        case: ("is not supported for ModelSlim checkpoints", "Install such a release") for case in ("modelslim",)
    }
if mxfp4_obstacle(guard.installed_release() or "0") is None:
    SERVED["mxfp4"] = OURS | {"quantization": "gpt_oss_mxfp4", "window": 128}
    REFUSED["mxfp4 with load balancing"] = (
        "expert load balancing (eplb_config) of mxfp4 experts is not supported on Ascend NPUs",
        "Leave eplb_config out",
    )
else:
    too_old_for_mxfp4 = ("mxfp4 weights", "ake a bfloat16 checkpoint of this model")
    REFUSED |= dict.fromkeys(("mxfp4", "mxfp4 with load balancing"), too_old_for_mxfp4)
if HAS_INT8_EXPERTS:
    SERVED["int8"] = OURS | {"quantization": "compressed-tensors"}
    REFUSED["int8 without a scale"] = (
        "the checkpoint lacks model.layers.0.self_attn.o_proj.weight_scale: ",
        "[2, 1] is expected beside model.layers.0.self_attn.o_proj.weight in model.safetensors",
    )
NOT_YET = (
    "is not served on Ascend NPUs by model runner V2 yet. Leave it out, or start without VLLM_USE_V2_MODEL_RUNNER=1"
)
NOT_ON_RUNNER_V2 = {
    "v2 blocks of drafts": (
        "another way of rejecting drafts than the standard one (rejection_sample_method in --speculative-config)"
    ),
    "v2 stages": "pipeline parallelism (--pipeline-parallel-size)",
    "v2 launcher": "an external launcher (--distributed-executor-backend external_launcher)",
    "v2 sharded sampling": "batch-sharded sampling (--enable-batch-sharded-sampling)",
    "v2 prompts": "prompts of embeddings (--enable-prompt-embeds)",
    "v2 noise": "64-bit noise (--use-fp64-gumbel)",
    "v2 transfer": "transfer of KV caches (--kv-transfer-config)",
    "v2 reasoning": "a reasoning parser (--reasoning-parser, --reasoning-config: its budget of thinking tokens)",
    "v2 nans": "VLLM_COMPUTE_NANS_IN_LOGITS",
    "v2 breakable graphs": "VLLM_USE_BREAKABLE_CUDAGRAPH",
}
if runner.v2_obstacle(guard.installed_release()) is None:
    REFUSED |= {case: (what, NOT_YET) for case, what in NOT_ON_RUNNER_V2.items()}
    REFUSED["v2 fault tolerance"] = REFUSED["fault tolerance"]
    SERVED |= dict.fromkeys(("v2", "v2 drafts"), OURS)
_RUNNER = vllm_file("model_executor", "layers", "fused_moe", "runner", "moe_runner.py")
if not (_RUNNER.exists() and "_maybe_apply_routed_scale_to_output" in _RUNNER.read_text()):
    del REFUSED["scaled in float16"]
    SERVED["scaled in float16"] = OURS  # earlier releases scale in the model, which knows what it does


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("refusals")
    module = "tests.serve.config_refusals_script"
    return run_script(module, str(folder), text="", devices=4, soc="A3", folder=folder, seconds=500)


@pytest.fixture(scope="module")
def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return result_of(done)


def skip_absent(outcome: dict[str, Any]) -> None:
    """Skip the test where this vLLM has not the options of its case."""
    if "absent" in outcome:
        pytest.skip(f"this vLLM has no {', '.join(outcome['absent'])}")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_served_is_refused_in_the_users_process_with_one_message(
    outcomes: dict[str, Any], case: str
) -> None:
    outcome = outcomes[case]
    skip_absent(outcome)
    assert outcome.get("type") == "NotServable", outcome
    assert "\n" not in outcome["error"]
    for text in REFUSED[case]:
        assert text in outcome["error"]


@pytest.mark.parametrize("case", SERVED)
def test_what_is_served_has_the_settings_of_this_port(outcomes: dict[str, Any], case: str) -> None:
    skip_absent(outcomes[case])
    assert outcomes[case] == SERVED[case]


def test_every_case_is_stated(outcomes: dict[str, Any]) -> None:
    assert outcomes.keys() == REFUSED.keys() | SERVED.keys()


@pytest.mark.parametrize(
    ("message", "times"),
    [
        ("the sliding window of 256 tokens hides nothing from requests of up to 256 tokens: it is left out", 1),
        ("the sliding window of 512 tokens hides nothing from requests of up to 512 tokens: it is left out", 1),
        (
            "--all2all-backend deepep_low_latency is not used: tokens reach their experts by AllGather, MC2 or AllToAll",
            2,
        ),
        ("--moe-backend triton is not used: experts run through torch_npu's grouped matmul", 1),
        ("MC2 takes up to 78 tokens per rank: HCCL_BUFFSIZE=4; HCCL_BUFFSIZE=7 would allow 128 tokens per rank", 1),
    ],
)
def test_what_was_changed_is_said_once(done: subprocess.CompletedProcess[str], message: str, times: int) -> None:
    assert done.stdout.count(message) == times


def test_a_window_that_no_request_outgrows_is_served(
    checkpoints: Callable[[str], Path], tmp_path: Path, run_engine: Callable[..., Any]
) -> None:
    """As Phi-3.5-MoE is published: the window is the longest request. transformers answers with the window."""
    checkpoint = checkpoints("mixtral")
    for file in checkpoint.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 512}))
    cases = tiny_models.few_cases(tmp_path)
    result = run_engine(job_for(tmp_path, [case.prompt for case in cases], 8, dp=1), devices=1)
    assert result["tokens"] == [case.answer for case in cases]
    assert result["again"] == result["tokens"]
