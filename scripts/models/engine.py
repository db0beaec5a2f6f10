# SPDX-License-Identifier: Apache-2.0
"""One rank of an engine in this process: starts it, asks every prompt twice, tells what came of it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.engine import engine_arguments, sampling

from .checkpoints import MODEL
from .families import Family
from .layouts import Layout
from .pictures import request

NEW_TOKENS = 16


def serve(
    family: Family, folder: Path, layout: Layout, rank: int, port: int, prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """``{"answers": …}``, for each prompt two, the second from the prefix cache; or ``{"refused": message}`` or
    ``{"crash": message, "at": stage}``. Messages say MODEL for the checkpoint's folder."""
    os.environ.update(family.environment)
    if layout.ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(layout.ranks),
            "LOCAL_WORLD_SIZE": str(layout.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    from vllm import LLM

    from vllm_ascend_patch.npu.config_check import NotServable

    stage = "start"
    try:
        llm = LLM(**_arguments(family, folder, layout))
        stage = "serving"
        mine = prompts[rank % layout.dp_size :: layout.dp_size] if layout.dp_size > 1 else prompts
        requests = [request(family, prompt) for prompt in mine]
        rounds = [_ask(llm, requests), _ask(llm, requests)]
        return {"answers": [list(pair) for pair in zip(*rounds, strict=True)]}
    except NotServable as error:
        return {"refused": str(error).replace(str(folder / MODEL), "MODEL")}
    except Exception as error:
        traceback.print_exc()
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        at = "configuration" if "create_engine_config" in names else stage
        message = f"{type(error).__name__}: {error}".replace(str(folder / MODEL), "MODEL")
        return {"crash": message, "at": at}


def _arguments(family: Family, folder: Path, layout: Layout) -> dict[str, Any]:
    changes: dict[str, Any] = {"dtype": family.dtype, "max_num_seqs": 8}
    if family.own_configuration:
        changes["trust_remote_code"] = True
    if not family.config:
        changes["load_format"] = "dummy"
    changes |= family.arguments
    if layout.ranks > 1:
        changes |= {
            "tensor_parallel_size": layout.tp_size,
            "data_parallel_size": layout.dp_size,
            "enable_expert_parallel": True,
            "distributed_executor_backend": "external_launcher",
        }
    return engine_arguments(str(folder / MODEL), **changes)


def _ask(llm: Any, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    parameters = sampling(NEW_TOKENS)
    parameters.logprobs = 0
    found = []
    for output in llm.generate(requests, parameters, use_tqdm=False):
        answer = output.outputs[0]
        tokens = list(answer.token_ids)
        chosen = [steps[token].logprob for steps, token in zip(answer.logprobs, tokens, strict=True)]
        found.append({"tokens": tokens, "logprobs": chosen})
    return found
