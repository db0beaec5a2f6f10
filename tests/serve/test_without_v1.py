# SPDX-License-Identifier: Apache-2.0
"""Where upstream has removed model runner V1, the package arms, checks and serves: tests of model runner V2 pass with a copy
of the installed vLLM that has no other."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import without_v1
from tests.support.environment import clean_environment, without_devices
from tests.support.installed import needs_runner_v2
from tests.support.processes import result_of, run

pytestmark = [needs_runner_v2, pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

TESTS: dict[str, list[str]] = {
    "kernels": ["tests/npu/test_runner_v2_kernels.py"],
    "agreement": ["tests/dp/test_agreement.py", "-k", "V2 or v2"],
    "one device": ["tests/serve/test_oracle.py", "-k", "V2 and qwen3_moe and one"],
    "dp 2 with ep": ["tests/serve/test_oracle.py", "-k", "V2 and qwen3_moe and dp and not tp"],
    "collectives": ["tests/dp/test_collectives.py", "-k", "V2 and graphs"],
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_v1.make(tmp_path_factory.mktemp("without") / "env")


def on_npus(python: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "vllm_ascend_patch", "virtual-npu", "--devices", "2", "--", str(python), *arguments]
    return run(command, seconds=800, environment=clean_environment(**environment))


def test_every_patch_that_is_left_fits_and_v2_serves_by_itself(python: Path) -> None:
    found: Any = result_of(on_npus(python, "-m", "tests.serve.without_v1_script", VLLM_ASCEND_PATCH="1"))
    assert Path(found["vllm"]).is_relative_to(python.parents[1])
    assert found["runner"] == "1"
    assert found["log"] == "vLLM's model runner V2 serves: the only one that this vLLM has"
    assert set(found["not needed"]) >= {"dp-session", "dp-prepare-inputs", "dp-all-reduce", "memory-profile"}
    assert set(found["applied"]) >= {"v2-session", "v2-agreement", "v2-execute-model", "moe-forward"}
    assert not found["others"]


def test_the_doctor_says_so(python: Path) -> None:
    done = on_npus(python, "-m", "vllm_ascend_patch", "doctor", VLLM_ASCEND_PATCH="1")
    assert "V2, the only one that this vLLM has" in done.stdout


@pytest.mark.parametrize("kind", TESTS)
def test_the_tests_of_model_runner_v2_pass(kind: str, python: Path) -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", *TESTS[kind]]
    if TESTS[kind][0].startswith("tests/dp"):  # these fork, and give their scripts devices themselves
        done = run([str(python), *arguments], seconds=800, environment=without_devices())
    else:
        done = on_npus(python, *arguments)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
