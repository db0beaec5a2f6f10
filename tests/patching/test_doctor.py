# SPDX-License-Identifier: Apache-2.0
"""The doctor says whether a serve would work, and is right about it: every obstacle is found, named and given a
remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.environment import ROOT, without_devices
from vllm_ascend_patch import armed
from vllm_ascend_patch.commands import doctor
from vllm_ascend_patch.patching.record import RecordStore
from vllm_ascend_patch.releases import declarations, guard, records

needs_vllm = pytest.mark.skipif(
    records.STORE.get(guard.installed_release() or "0") is None, reason="no recorded vLLM is installed"
)


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env=without_devices(**variables), cwd=ROOT, timeout=120, check=False
    )


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answer for the probe's process, which has its own test below. The patch set is a new one, as in the command's
    process: this process's may have met modules that another test imported."""
    monkeypatch.setattr(armed._process, "patch_set", None)
    answer: dict[str, Any] = {"count": 2, "name": "Ascend910B1", "imports": True}
    monkeypatch.setattr(doctor, "_start_probe", lambda: None)
    monkeypatch.setattr(doctor, "_finish_probe", lambda process: answer)
    for name in [name for name in os.environ if name.startswith(("VLLM_", "ASCEND", "VIRTUAL_NPU", "HCCL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_ASCEND_PATCH", "1")
    return answer


def checks(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in report["checks"]}


@needs_vllm
def test_kinds_of_attention_that_cann_does_not_take_are_named_and_no_obstacle(devices: Any) -> None:
    taken = {"head size 128": None}
    devices["attention"] = taken | {"sliding windows": None}
    check = checks(doctor.collect())["attention"]
    assert check["status"] == "ok"
    assert check["found"] == "one call for a batch: head size 128, sliding windows"
    devices["attention"] = taken | {"sliding windows": "no band", "sinks": "no sink"}
    report = doctor.collect()
    check = checks(report)["attention"]
    assert check["status"] == "warning"
    assert check["found"] == "one call for a batch: head size 128; not sliding windows, sinks"
    assert "CANN 9.1" in check["advice"]
    assert report["ok"]


@needs_vllm
def test_a_machine_that_can_serve_passes(devices: Any) -> None:
    report = doctor.collect()
    failed = [check for check in report["checks"] if check["status"] == "fail"]
    assert report["ok"], failed
    states = {row["id"]: row["state"] for row in report["patches"]}
    assert set(states) == {patch.id for patch in declarations.patches()}
    assert set(states.values()) <= {"armed", "not needed", "disabled"}
    assert "armed" in states.values()


def checkpoint(folder: Path, kind: str) -> str:
    """A folder with a ModelSlim checkpoint of one expert."""
    sizes = {"hidden_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3MoeForCausalLM"], **sizes}))
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    tensors = {name: torch.zeros(1024, 64, dtype=torch.int8), f"{name}_scale": torch.ones(1024, 1)}
    (folder / "quant_model_description.json").write_text(json.dumps(dict.fromkeys(tensors, kind)))
    save_file(tensors, folder / "quant_model_weights.safetensors")
    return str(folder)


@needs_vllm
def test_a_checkpoint_is_named_and_sized(devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "modelslim_obstacle", lambda release: None)
    report = doctor.collect(checkpoint(tmp_path, "W8A8_DYNAMIC"))
    assert report["ok"]
    assert checks(report)["checkpoint"]["found"] == "ModelSlim: 1 weights W8A8_DYNAMIC"
    assert checks(report)["routed experts"]["found"] == "0.00 GiB of 0.00 GiB, over all ranks"
    assert checks(report)["model"]["found"] == f"{tmp_path}: served, by what its files tell"
    assert checks(report)["architecture"]["found"].startswith("Qwen3MoeForCausalLM: right: 1 NPU, ")


@needs_vllm
def test_a_checkpoint_that_a_start_would_refuse_fails(devices: Any, tmp_path: Path) -> None:
    report = doctor.collect(checkpoint(tmp_path, "W4A4_DYNAMIC"))
    assert not report["ok"]
    failed = checks(report)["model"]
    assert failed["status"] == "fail"
    assert "up_proj.weight is W4A4_DYNAMIC, which is not supported on Ascend NPUs by this port" in failed["found"]


def test_what_is_no_model_fails(devices: Any, tmp_path: Path) -> None:
    failed = checks(doctor.collect(str(tmp_path)))["model"]
    assert failed["status"] == "fail"


OBSTACLES = [
    ("no device", {}, {"count": 0}, "NPU devices", "npu-smi"),
    ("broken torch_npu", {}, {"count": 0, "error": "torch_npu cannot be imported: X"}, "NPU devices", "CANN"),
    ("plugins", {"VLLM_PLUGINS": "ascend"}, None, "VLLM_PLUGINS", "add ascend_patch"),
    ("switched off", {"VLLM_ASCEND_PATCH": "0"}, None, "VLLM_ASCEND_PATCH", "set it to 1"),
    ("bad value", {"VLLM_ASCEND_PATCH_MOE_COMM": "mc3"}, None, "settings", ""),
    ("bad id", {"VLLM_ASCEND_PATCH_DISABLE": "nothing"}, None, "settings", ""),
    ("target device", {"VLLM_TARGET_DEVICE": "cpu"}, None, "VLLM_TARGET_DEVICE", "unset"),
]


@pytest.mark.parametrize(
    ("name", "variables", "answer", "check", "advice"), OBSTACLES, ids=[case[0] for case in OBSTACLES]
)
def test_an_obstacle_is_found_and_given_a_remedy(
    devices: Any, monkeypatch: Any, name: str, variables: dict[str, str], answer: Any, check: str, advice: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    if answer is not None:
        devices.clear()
        devices.update(answer)
    report = doctor.collect()
    assert not report["ok"]
    assert checks(report)[check]["status"] == "fail"
    assert advice in checks(report)[check]["advice"]


@pytest.mark.parametrize("value", [None, "0", "1"])
@pytest.mark.parametrize("release", ["0.31.0", "0.33.0"])
def test_which_model_runner_a_serve_would_take(
    devices: Any, monkeypatch: pytest.MonkeyPatch, value: str | None, release: str
) -> None:
    monkeypatch.setattr(guard, "installed_release", lambda: release)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
    check = checks(doctor.collect())["model runner"]
    if value != "1":
        assert check["status"] == "ok"
        assert check["found"] == "V1, the default, since it serves more than V2; VLLM_USE_V2_MODEL_RUNNER=1 asks for V2"
    elif release == "0.33.0":
        assert (check["status"], check["found"]) == ("ok", "V2, asked for by VLLM_USE_V2_MODEL_RUNNER=1")
    else:
        assert check["status"] == "fail"
        assert "vLLM >=0.32, and this is 0.31.0" in check["found"]
        assert check["advice"] == "unset VLLM_USE_V2_MODEL_RUNNER or set it to 0"


def test_a_rival_platform_is_found(devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "vllm_ascend-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = doctor.collect()
    assert not report["ok"]
    assert "stands down" in checks(report)["vllm-ascend"]["found"]


@needs_vllm
def test_an_unrecorded_release_is_refused_by_name(
    devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "STORE", RecordStore(tmp_path))
    monkeypatch.setattr(guard, "_verdicts", {})
    rows = {row.patch.id: row for row in doctor.patch_rows()}
    refused = [row for row in rows.values() if row.state == "refused"]
    assert refused
    assert all(row.patch.id in row.reason and "VLLM_ASCEND_PATCH_STRICT" in row.reason for row in refused)


def test_without_vllm_one_line_says_so_and_no_patch_is_judged(
    devices: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "installed_tree", lambda: None)
    monkeypatch.setattr(guard, "installed_release", lambda: None)
    assert doctor.command([]) == 1
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if "vLLM " in line and "fail" in line)
    assert "not installed" in row
    assert f"pip install --no-deps vllm=={records.STORE.releases()[-1]}" in row
    assert "VLLM_ASCEND_PATCH_STRICT" not in printed
    assert not [patch.id for patch in declarations.patches() if patch.id in printed]
    assert printed.splitlines()[-1] == "A serve would not work here: vLLM."


@needs_vllm
def test_patches_of_other_releases_are_listed_only_if_asked_for(
    devices: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {row.patch.id: row.state for row in doctor.patch_rows()}
    others = {patch for patch, state in states.items() if state == "not needed"}
    assert others

    def listed(*options: str) -> set[str]:
        doctor.command(options)
        cells = {line.split()[1] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1}
        return cells & set(states)

    assert listed() == set(states) - others
    assert listed("--all") == set(states)


def release_row(monkeypatch: pytest.MonkeyPatch, torch: str, torch_npu: str, release: str = "0.32.0") -> dict[str, str]:
    installed = {"torch": torch, "torch_npu": torch_npu}
    monkeypatch.setattr(doctor, "_installed", installed.get)
    monkeypatch.setattr(guard, "installed_release", lambda: release)
    return checks(doctor.collect())["vLLM"]


@needs_vllm
def test_the_standing_names_the_stack_that_it_was_seen_with(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = release_row(monkeypatch, "2.13.0+cpu", "2.13.0")
    assert row["status"] == "ok"
    assert row["found"].startswith("0.32.0: seen on virtual NPUs with torch 2.13.0, torch_npu 2.13.0: works")


@needs_vllm
def test_another_stack_than_that_is_said_and_no_promise(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = release_row(monkeypatch, "2.11.0", "2.11.0.post2")
    assert row["status"] == "warning"
    assert "seen on virtual NPUs with torch 2.13.0, torch_npu 2.13.0" in row["found"]
    assert "Installed: torch 2.11.0, torch_npu 2.11.0.post2" in row["found"]


@needs_vllm
def test_a_release_is_known_with_each_stack_that_it_was_run_with(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix's, the newest of the torch that the release pins, and that of its own line of tests."""
    assert [str(stack) for stack in records.stacks("0.10.1.1")] == [
        "torch 2.13.0, torch_npu 2.13.0",
        "torch 2.7.1, torch_npu 2.7.1.post11",
        "torch 2.7.1, torch_npu 2.7.1",
    ]
    for torch_npu in ("2.7.1", "2.7.1.post11"):
        assert release_row(monkeypatch, "2.7.1", torch_npu, "0.10.1.1")["status"] == "ok"


@needs_vllm
def test_nothing_works_with_a_torch_npu_that_does_not_import(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.clear()
    devices.update({"count": 0, "error": "torch_npu cannot be imported: ImportError: libhccl.so"})
    row = release_row(monkeypatch, "2.13.0+cpu", "2.13.0")
    assert row["status"] == "warning"
    assert row["found"].startswith("0.32.0: cannot be said as long as torch_npu does not import")


def test_a_cuda_build_of_torch_is_named(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["filelock", "nvidia-cublas==13.1; platform_system == 'Linux'"]
    )
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    row = checks(doctor.collect())["torch"]
    assert (row["status"], row["found"].endswith("a CUDA build")) == ("warning", True)
    assert "CPU build" in row["advice"]


@needs_vllm
def test_disabled_patches_and_the_number_of_copies_are_shown(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(patch for patch in declarations.patches() if patch.default)
    monkeypatch.setenv("VLLM_ASCEND_PATCH_DISABLE", one.id)
    rows = {row["id"]: row for row in doctor.collect()["patches"]}
    assert (rows[one.id]["state"], rows[one.id]["reason"]) == ("disabled", "named in VLLM_ASCEND_PATCH_DISABLE")
    release = guard.installed_release()
    for patch in declarations.patches():
        if rows[patch.id]["state"] == "armed":
            assert release is not None
            known = records.STORE.get(release)
            assert known is not None
            assert rows[patch.id]["aliases"] == list(known.targets[patch.target].aliases)


def test_the_command_is_plain_text_in_a_pipe_and_its_exit_code_says_it_all() -> None:
    """Without CANN: the real probe fails, and says why."""
    done = run([sys.executable, "-m", "vllm_ascend_patch", "doctor"])
    if "NPU devices" in done.stdout and done.returncode == 0:
        pytest.skip("there is an NPU here")
    assert done.returncode == 1, done.stderr
    assert "\x1b[" not in done.stdout
    assert "A serve would not work here: NPU devices" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@needs_vllm
def test_the_command_passes_on_simulated_npus(virtual_npu: list[str]) -> None:
    done = run([*virtual_npu, "-m", "vllm_ascend_patch", "doctor", "--json"], VLLM_ASCEND_PATCH="1")
    report = json.loads(done.stdout)
    assert done.returncode == 0, [check for check in report["checks"] if check["status"] == "fail"]
    assert report["ok"]
    found = checks(report)
    assert found["NPU devices"]["found"] == "2 x Ascend910B1 (virtual)"
    assert (found["CANN"]["status"], found["CANN"]["found"]) == ("ok", "simulated: virtual NPUs, no hardware")
    assert found["device and HCCL settings"]["found"] == "none set"


def test_collecting_imports_neither_torch_nor_vllm() -> None:
    program = (
        "import os, sys; os.environ['VLLM_ASCEND_PATCH'] = '0'\n"
        "from vllm_ascend_patch.commands import doctor\n"
        "doctor.collect()\n"
        "assert not {'torch', 'torch_npu', 'vllm'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr


def test_starting_the_command_line_imports_no_torch() -> None:
    program = "import sys; import vllm_ascend_patch.__main__; assert not {'torch', 'vllm', 'rich'} & set(sys.modules)"
    done = run([sys.executable, "-c", program], VLLM_ASCEND_PATCH="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["upstream", "--help"], ["docs", "--help"]])
def test_every_command_explains_itself(arguments: list[str]) -> None:
    done = run([sys.executable, "-m", "vllm_ascend_patch", *arguments])
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
