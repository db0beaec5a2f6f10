# SPDX-License-Identifier: Apache-2.0
"""Script: the workers of two ranks join their process groups and build their model runners, and with them the step sync, and
one of them may have been started differently.

    python -m tests.dp.start_ranks       (under the virtual NPU with two devices)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import os
import tempfile
import time
from typing import Any

import torch.distributed as dist
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs

from tests.support import tiny_models
from tests.support.processes import report
from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.dp import DPSyncError
from vllm_ascend_patch.npu.worker import NPUWorker
from vllm_ascend_patch.seams import serving

SIZE = 2
# what rank 1 has of its own: environment, arguments
DIFFERENCES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "a variable": ({"VLLM_ASCEND_PATCH_MOE_COMM": "allgather"}, {}),
    "an argument": ({}, {"max_num_seqs": 5}),
    "the time limit": ({"VLLM_ASCEND_PATCH_DP_TIMEOUT": "7"}, {}),
    "the transport": ({"VLLM_ASCEND_PATCH_DP_SYNC": "cpu"}, {}),
    "the communication window": ({"HCCL_BUFFSIZE": "512"}, {}),
    "the hosts": ({}, {}),
    "load balancing": ({}, {"enforce_eager": True, "additional_config": {"eplb_config": {}}}),
}


def run_rank(rank: int, size: int, model: str, difference: str) -> tuple[str, float]:
    """The transport or the error, and the seconds that it took."""
    environment, arguments = DIFFERENCES[difference] if rank == 1 else ({}, {})
    os.environ |= environment
    settings = {"max_num_seqs": 8, **arguments}
    config = EngineArgs(
        model=model,
        skip_tokenizer_init=True,
        dtype="float16",
        max_model_len=512,
        data_parallel_size=size,
        data_parallel_rank=rank,
        enable_expert_parallel=True,
        **settings,
    ).create_engine_config()
    if rank == 1 and difference == "the hosts":
        config.parallel_config.data_parallel_size_local = size  # as where a host has more ranks than another
    local_rank = rank - (config.parallel_config.data_parallel_rank_local or 0)
    dist.barrier()
    begin = time.monotonic()
    with set_current_vllm_config(config):
        worker = NPUWorker(config, local_rank, 0, "env://", is_driver_worker=True)
        try:
            worker.init_device()
        except DPSyncError as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - begin
    seconds = time.monotonic() - begin
    session = serving.entering(worker.model_runner).session
    assert session is not None
    name = session.channel.transport.name
    serving.end(worker.model_runner)
    return name, seconds


if __name__ == "__main__":
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.CONFIGS["qwen3_moe"]
        model.architectures = ["Qwen3MoeForCausalLM"]
        model.save_pretrained(folder)
        for difference in DIFFERENCES:
            found[difference] = values_of(run_ranks(run_rank, SIZE, folder, difference, together=True, timeout=60))
    report(found)
