# SPDX-License-Identifier: Apache-2.0
"""The ``doctor`` command: collect, judge and print. Collecting changes nothing and imports neither torch nor vLLM here."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, NamedTuple

from vllm_ascend_patch import envs, platforms, plugin
from vllm_ascend_patch.patching import PatchError, PatchStatus, State
from vllm_ascend_patch.patching.verdict import Finding
from vllm_ascend_patch.releases import declarations, guard, records, wanted

from .terminal import console, table

OK, WARNING, FAIL = "ok", "warning", "fail"
_GROUPS = ("vllm.platform_plugins", "vllm.general_plugins")
_PROBE_SECONDS = 60.0
_CANN_FILES = ("version.cfg", "version.info", "compiler/version.info", "runtime/version.info")


class Check(NamedTuple):
    """One line of the report: what was looked at, how it stands, what was found, and what to do."""

    name: str
    status: str
    found: str
    advice: str = ""


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _start_probe() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("device_probe.py")
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_ASCEND_PATCH"}
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    )


def _finish_probe(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"count": 0, "error": f"torch_npu did not answer within {_PROBE_SECONDS:.0f} s"}
    try:
        return dict(json.loads(output.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {"count": 0, "error": f"the process that asks torch_npu ended with exit code {process.returncode}"}


def _minor(text: str) -> str:
    return ".".join(text.split("+")[0].split(".")[:2])


def _versions() -> list[Check]:
    torch, torch_npu = _installed("torch"), _installed("torch_npu")
    checks = [Check("Python", OK, platform.python_version())]
    checks.append(Check("torch", OK, torch) if torch else Check("torch", FAIL, "not installed", "install torch"))
    if torch_npu is None:
        advice = f"pip install --no-deps torch_npu=={torch.split('+')[0]}" if torch else "install torch and torch_npu"
        checks.append(Check("torch_npu", FAIL, "not installed", advice))
    elif torch is not None and _minor(torch) != _minor(torch_npu):
        advice = f"pip install --no-deps torch_npu=={torch.split('+')[0]}"
        checks.append(Check("torch_npu", FAIL, f"{torch_npu}, made for torch {_minor(torch_npu)}", advice))
    else:
        checks.append(Check("torch_npu", OK, torch_npu))
    checks.append(_cann())
    return checks


def _cann() -> Check:
    if _is_virtual():
        return Check("CANN", OK, "simulated: virtual NPUs, no hardware")
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH")
    if home is None:
        return Check("CANN", WARNING, "ASCEND_TOOLKIT_HOME is not set", "source the toolkit's set_env.sh")
    for name in _CANN_FILES:
        path = Path(home) / name
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                key, _, value = line.partition("=")
                if key.strip().lower() in ("version", "runtime_running_version", "toolkit_running_version"):
                    return Check("CANN", OK, f"{value.strip(' []').rpartition(':')[2]} in {home}")
    return Check("CANN", WARNING, f"no version file in {home}", "check the installation of the toolkit")


def _release() -> Check:
    release = guard.installed_release()
    if release is None:
        return Check(
            "vLLM",
            FAIL,
            "not installed",
            "install a release that is recorded: " + ", ".join(records.STORE.releases()[-3:]),
        )
    if records.STORE.get(release) is None:
        known = records.STORE.releases()
        return Check(
            "vLLM", FAIL, f"{release}, of which there is no record", f"install a release from {known[0]} to {known[-1]}"
        )
    return Check("vLLM", OK, f"{release}: {records.standing(release)}")


def _entry_points() -> list[Check]:
    checks = []
    found = {group: [point.name for point in entry_points(group=group)] for group in _GROUPS}
    missing = [group for group in _GROUPS if "ascend_patch" not in found[group]]
    if missing:
        checks.append(
            Check("entry points", FAIL, f"not registered in {' and '.join(missing)}", "reinstall vllm_ascend_patch")
        )
    else:
        checks.append(Check("entry points", OK, "ascend_patch in both plugin groups"))
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "ascend_patch" not in [name.strip() for name in allowed.split(",")]:
        advice = "add ascend_patch to it, or unset it"
        checks.append(Check("VLLM_PLUGINS", FAIL, f"{allowed!r} keeps our entry points from loading", advice))
    elif allowed is not None:
        checks.append(Check("VLLM_PLUGINS", OK, allowed))
    rival = platforms.competitor()
    if rival is not None:
        checks.append(Check("vllm-ascend", FAIL, rival.partition(". ")[0], rival.partition(". ")[2]))
    others = [name for name in found[_GROUPS[0]] if name not in ("ascend_patch", "ascend")]
    if others and allowed is None:
        advice = "if one of them is active too, vLLM refuses to start: VLLM_PLUGINS=ascend_patch"
        checks.append(Check("other platforms", WARNING, ", ".join(others), advice))
    return checks


def _arms_itself() -> bool:
    """Whether the installed vLLM was built with our diffs."""
    tree = guard.installed_tree()
    source = tree.read(f"{records.PACKAGE}/__init__.py") if tree is not None else None
    return source is not None and b"import vllm_ascend_patch" in source


def _is_virtual() -> bool:
    """Whether this process runs under the virtual NPU's launcher."""
    return "VIRTUAL_NPU_RUNTIME" in os.environ


def _environment() -> list[Check]:
    checks = []
    if envs.switched_off():
        checks.append(Check("VLLM_ASCEND_PATCH", FAIL, "0: the patch set is switched off", "set it to 1"))
    elif _arms_itself():
        checks.append(Check("VLLM_ASCEND_PATCH", OK, "not needed: this vLLM was built with the diffs of patches/"))
    elif not envs.is_set(envs.PREFIX):
        advice = "set it to 1, or import vllm_ascend_patch before vllm"
        checks.append(
            Check("VLLM_ASCEND_PATCH", WARNING, "not set: only code that imports the package is patched", advice)
        )
    else:
        checks.append(Check("VLLM_ASCEND_PATCH", OK, os.environ[envs.PREFIX]))
    try:
        envs.validate()
        wanted.check(declarations.patches())
    except (envs.EnvError, PatchError) as error:
        checks.append(Check("settings", FAIL, str(error), "correct the value"))
    if os.environ.get(plugin.V2, "0").strip() not in ("", "0"):
        checks.append(Check(plugin.V2, FAIL, os.environ[plugin.V2], "unset it: the patch set works on model runner V1"))
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        checks.append(Check("VLLM_TARGET_DEVICE", FAIL, "cpu: vLLM does not look at platform plugins", "unset it"))
    shown = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("HCCL_", "ASCEND_RT_"))
    ]
    checks.append(Check("device and HCCL settings", OK, ", ".join(shown) or "none set"))
    return checks


def _devices(found: dict[str, Any]) -> Check:
    if found.get("error"):
        return Check(
            "NPU devices", FAIL, found["error"], "check npu-smi info and the CANN environment; or run under virtual-npu"
        )
    if not found["count"]:
        return Check("NPU devices", FAIL, "none visible", "check npu-smi info and ASCEND_RT_VISIBLE_DEVICES")
    virtual = " (virtual)" if _is_virtual() else ""
    return Check("NPU devices", OK, f"{found['count']} x {found.get('name', 'unknown SoC')}{virtual}")


def patch_rows() -> list[PatchStatus]:
    """The state of every patch: as it is in this process when the set is armed, else what it would be in a serve."""
    import vllm_ascend_patch

    rows = []
    for row in vllm_ascend_patch.status():
        if row.state is State.IDLE:
            row = _foreseen(row)
        rows.append(row)
    return rows


def _foreseen(row: PatchStatus) -> PatchStatus:
    try:
        disabled = wanted.why_disabled(row.patch)
    except envs.EnvError as error:
        return row._replace(state=State.FAILED, reason=str(error))
    if disabled is not None:
        return row._replace(state=State.DISABLED, reason=disabled)
    verdict = guard.examine(row.patch)
    row = row._replace(reason=verdict.line, release=verdict.release)
    if verdict.finding is Finding.NOT_NEEDED:
        return row._replace(state=State.NOT_NEEDED)
    if verdict.refuses and _strict() == "error":
        return row._replace(state=State.REFUSED)
    record = records.STORE.get(verdict.release) if verdict.release else None
    known = record.targets.get(row.patch.target) if record is not None else None
    return row._replace(state=State.ARMED, aliases=known.aliases if known is not None else ())


def _strict() -> str:
    try:
        return str(envs.VLLM_ASCEND_PATCH_STRICT)
    except envs.EnvError:
        return "error"


def collect() -> dict[str, Any]:
    """Everything the command prints, as JSON-ready data. ``ok`` says whether a serve would work."""
    process = _start_probe()
    try:
        patches = patch_rows()
        checks = [*_versions(), _release(), *_entry_points(), *_environment()]
    finally:
        found = _finish_probe(process)
    checks.insert(4, _devices(found))
    broken = [row.patch.id for row in patches if row.state in (State.REFUSED, State.FAILED)]
    return {
        "ok": not broken and all(check.status != FAIL for check in checks),
        "checks": [check._asdict() for check in checks],
        "patches": [row.as_dict() for row in patches],
    }


def run(*, as_json: bool) -> int:
    """Print the report; 0 when a serve would work, else 1."""
    report = collect()
    if as_json:
        print(json.dumps(report, indent=1))
        return 0 if report["ok"] else 1
    out = console()
    rows = [(check["name"], check["status"], check["found"], check["advice"]) for check in report["checks"]]
    out.print(table("Environment", ("check", "status", "found", "what to do"), rows))
    patches = [
        (row["id"], row["state"], str(len(row["aliases"])), row["target"], row["reason"]) for row in report["patches"]
    ]
    out.print(table("Patches", ("patch", "state", "aliases", "target", "reason"), patches))
    failed = [check["name"] for check in report["checks"] if check["status"] == FAIL]
    failed += [row["id"] for row in report["patches"] if row["state"] in (State.REFUSED, State.FAILED)]
    out.print("A serve would work here." if report["ok"] else f"A serve would not work here: {', '.join(failed)}.")
    return 0 if report["ok"] else 1
