# SPDX-License-Identifier: Apache-2.0
"""What cannot be served ends in one clear error, a non-zero exit, and nothing left running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, MixtralConfig

from tests.support.installed import HAS_KERNEL_REGISTRY
from tests.support.tiny_models import CONFIGS

from .scripts import refused

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]


def test_float32_is_refused_with_the_dtypes_that_work(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, dtype="float32")
    assert "dtype float32 cannot be served on Ascend NPUs" in output
    assert "--dtype bfloat16 or --dtype float16" in output
    # It is the error that ends the output; after it comes at most what torch_npu prints when a process fails.
    assert any("NotServable: dtype float32 cannot be served" in line for line in output.splitlines()[-2:])


def test_more_ranks_than_devices_are_refused_with_both_numbers(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, devices=1, tp=2)
    assert "need 2 NPUs, but torch_npu sees 1" in output


def test_a_head_size_that_the_operator_does_not_take_is_refused(tmp_path: Path) -> None:
    values = CONFIGS["mixtral"].to_dict() | {"head_dim": 24}
    AutoModelForCausalLM.from_config(MixtralConfig.from_dict(values)).half().save_pretrained(tmp_path / "odd")
    output = refused(tmp_path / "odd", tmp_path)
    assert "head size 24" in output
    assert "multiple of 16" in output


def test_no_device_is_refused_with_what_was_found(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, environment={"ASCEND_RT_VISIBLE_DEVICES": "-1"})
    assert "there is no NPU to run on" in output


def test_an_unknown_value_of_a_variable_lists_the_valid_ones(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, environment={"VLLM_ASCEND_PATCH_MOE_COMM": "mc3"})
    assert "VLLM_ASCEND_PATCH_MOE_COMM='mc3' is not valid" in output
    assert "auto, allgather, mc2, alltoall" in output


def test_speculation_that_is_not_served_is_refused_with_what_is(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    method = "ngram_gpu" if HAS_KERNEL_REGISTRY else "ngram"
    drafts = {"method": method, "num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    output = refused(checkpoints("mixtral"), tmp_path, arguments={"speculative_config": drafts})
    if HAS_KERNEL_REGISTRY:
        assert "speculative method 'ngram_gpu' is not supported" in output
        assert "supported: ngram, mtp, eagle3" in output
    else:
        assert "speculative decoding is not supported on Ascend NPUs with this vLLM release" in output
