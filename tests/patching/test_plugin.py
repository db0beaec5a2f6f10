# SPDX-License-Identifier: Apache-2.0
"""The two entry points: silent when not asked for, active when asked for, loud when something stands in the way."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_devices
from tests.support.installed import needs_vllm
from tests.support.processes import result_of, run
from vllm_ascend_patch import envs
from vllm_ascend_patch.plugin import PLATFORM
from vllm_ascend_patch.releases import guard, records, runner

pytestmark = needs_vllm

SCRIPT = str(Path(__file__).with_name("plugin_scenarios.py"))
Outcomes = dict[str, dict[str, Any]]


def outcomes_of(command: list[str]) -> Outcomes:
    done = run(command, seconds=280, environment=without_devices())
    outcomes: Outcomes = result_of(done)
    crashed = {name: outcome["crash"] for name, outcome in outcomes.items() if "crash" in outcome}
    assert not crashed
    return outcomes


@pytest.fixture(scope="module")
def outcomes(virtual_npu: list[str]) -> Outcomes:
    """Every scenario on simulated NPUs."""
    return outcomes_of([*virtual_npu, SCRIPT])


def test_nothing_happens_when_nobody_asked(outcomes: Outcomes) -> None:
    outcome = outcomes["not asked"]
    assert outcome["platform"] == [None, None]
    assert (outcome["imported"], outcome["registered"], outcome["v2"]) == (False, [], None)
    assert "error" not in outcome


@pytest.mark.parametrize("how", ["variable", "import"])
def test_the_platform_is_ours_when_asked_for(outcomes: Outcomes, how: str) -> None:
    outcome = outcomes[how]
    assert "error" not in outcome, outcome
    assert outcome["platform"] == [PLATFORM, PLATFORM]
    assert "armed" in outcome["states"]
    assert not {"failed", "refused", "idle"} & set(outcome["states"])
    assert outcome["registered"] == sorted(envs.VARIABLES)


def test_the_model_runner_is_pinned_and_the_log_says_so(outcomes: Outcomes) -> None:
    assert outcomes["variable"]["v2"] == "0"
    assert "model runner V1 serves: the default, since it serves more than V2; VLLM_USE" in outcomes["variable"]["log"]


def test_the_other_model_runner_serves_where_it_is_asked_for_and_known_to_work(outcomes: Outcomes) -> None:
    outcome, obstacle = outcomes["v2 wanted"], runner.v2_obstacle(guard.installed_release())
    if obstacle is None:
        assert "error" not in outcome, outcome
        assert outcome["v2"] == "1"
    else:
        assert outcome["error"] == (
            f"EnvError: VLLM_USE_V2_MODEL_RUNNER=1 asks for model runner V2, but {obstacle}: "
            "unset VLLM_USE_V2_MODEL_RUNNER or set it to 0"
        )


def test_which_releases_serve_model_runner_v2() -> None:
    assert [r for r in records.STORE.releases() if runner.v2_obstacle(r) is None] == ["0.32.0", "0.33.0"]
    assert runner.v2_obstacle("0.31.0") == "it is served with vLLM >=0.32, and this is 0.31.0"


@pytest.mark.parametrize(
    ("said", "release", "expected"),
    [
        (None, "0.33.0", ("V2", "the only one that this vLLM has", None)),
        ("1", "0.33.0", ("V2", "asked for by VLLM_USE_V2_MODEL_RUNNER=1", None)),
        (
            "0",
            "0.33.0",
            ("V1", "", "VLLM_USE_V2_MODEL_RUNNER=0 asks for model runner V1, which this vLLM does not have"),
        ),
        (
            None,
            "0.31.0",
            ("V2", "", "this vLLM has model runner V2 alone, but it is served with vLLM >=0.32, and this is 0.31.0"),
        ),
    ],
)
def test_which_model_runner_serves_where_upstream_has_removed_v1(
    monkeypatch: pytest.MonkeyPatch, said: str | None, release: str, expected: tuple[str, str, str | None]
) -> None:
    monkeypatch.delenv(runner.VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(runner.VARIABLE, said)
    assert runner.choose(release, v1=False)[:3] == expected


def test_an_explicit_zero_keeps_everything_off(outcomes: Outcomes) -> None:
    outcome = outcomes["zero"]
    assert outcome["platform"] == [None, None]
    assert outcome["states"] == ["idle"]
    assert "error" not in outcome


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("bad switch", "VLLM_ASCEND_PATCH='maybe' is not valid: use 1 or 0"),
        ("bad value", "VLLM_ASCEND_PATCH_STRICT='loud' is not valid: use one of error, warn, off"),
        ("bad name", "did you mean VLLM_ASCEND_PATCH_STRICT?"),
        ("bad id", "names 'no-such-patch', which is no patch"),
    ],
)
def test_a_mistake_stops_vllm_with_the_valid_choices(outcomes: Outcomes, scenario: str, words: str) -> None:
    assert outcomes[scenario]["platform"] == [None, None]
    assert words in outcomes[scenario]["error"]


def test_disabling_every_patch_leaves_the_platform(outcomes: Outcomes) -> None:
    outcome = outcomes["all disabled"]
    assert outcome["platform"] == [PLATFORM, PLATFORM]
    assert outcome["states"] == ["disabled"]


def test_we_stand_down_for_vllm_ascend_with_one_warning(outcomes: Outcomes) -> None:
    outcome = outcomes["rival"]
    assert outcome["platform"] == [None, None]
    assert "error" not in outcome
    assert outcome["states"] == ["idle"]
    assert outcome["log"].count("stands down") == 1
    assert "VLLM_PLUGINS=ascend_patch" in outcome["log"]


def test_vllm_plugins_can_keep_vllm_ascend_out(outcomes: Outcomes) -> None:
    assert outcomes["rival kept out"]["platform"] == [PLATFORM, PLATFORM]
    assert "error" not in outcomes["rival kept out"]


@pytest.mark.parametrize("scenario", ["too late", "overruled"])
def test_a_platform_that_was_chosen_before_is_an_error_with_the_remedy(outcomes: Outcomes, scenario: str) -> None:
    error = outcomes[scenario]["error"]
    assert error.startswith("AppliedTooLate: vLLM has already chosen its platform (object)")
    assert "VLLM_ASCEND_PATCH=1" in error


def test_the_first_cause_is_raised_when_arming_failed_before_vllm_chose_its_platform(outcomes: Outcomes) -> None:
    outcome = outcomes["armed late"]
    assert outcome["platform"] == [None, None]
    assert outcome["error"].startswith("TargetMissing: vllm.v1.worker.gpu_worker has no attribute 'Worker'")
    assert outcome["again"] == outcome["error"]


def test_an_unrecorded_vllm_does_not_start(outcomes: Outcomes) -> None:
    error = outcomes["unrecorded"]["error"]
    for words in (
        "PatchRefused: patch ",
        "does not fit vLLM",
        "unknown",
        "VLLM_ASCEND_PATCH_STRICT=warn",
        "VLLM_ASCEND_PATCH_DISABLE=",
    ):
        assert words in error
    assert "refused" in outcomes["unrecorded"]["states"]


def test_the_switch_overrides_the_refusal(outcomes: Outcomes) -> None:
    outcome = outcomes["unrecorded, warn"]
    assert "error" not in outcome
    assert outcome["platform"] == [PLATFORM, PLATFORM]


def test_no_device_is_an_error_that_says_what_was_found() -> None:
    outcome = outcomes_of([sys.executable, SCRIPT, "no device"])["no device"]
    if outcome["platform"][0] is not None:
        pytest.skip("there is an NPU here")
    assert outcome["error"].startswith("NoDevice: vllm_ascend_patch was asked for, but there is no NPU")
    assert "npu-smi" in outcome["error"]
