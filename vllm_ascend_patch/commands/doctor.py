# SPDX-License-Identifier: Apache-2.0
"""The ``doctor`` command: collect, judge and print. Collecting changes nothing and imports neither torch nor vLLM here."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import click

from vllm_ascend_patch import envs, platforms
from vllm_ascend_patch.core import operator_calls
from vllm_ascend_patch.core.local_checkpoint import look_at
from vllm_ascend_patch.core.model_support import Parallelism, problems
from vllm_ascend_patch.core.model_traits import traits_of
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.model_facts import load_config
from vllm_ascend_patch.patching import PatchError, PatchStatus, State
from vllm_ascend_patch.patching.patchset import state_of
from vllm_ascend_patch.releases import declarations, guard, records, runner, served_models, wanted
from vllm_ascend_patch.releases.modelslim import modelslim_obstacle

from .calling import call
from .terminal import console, table

OK, WARNING, FAIL = "ok", "warning", "fail"
_GROUPS = ("vllm.platform_plugins", "vllm.general_plugins")
_BROKEN = (State.REFUSED, State.FAILED)
_PROBE_SECONDS = 60.0
_OTHER_TORCH_NPU = "install a torch_npu that docs/install.md has for this release of vLLM, or a newer one of it"
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
        [sys.executable, "-P", str(script), *sorted(operator_calls.operators())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
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
    checks.append(_torch(torch))
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


def _torch(installed: str | None) -> Check:
    if installed is None:
        return Check("torch", FAIL, "not installed", "install a CPU build of torch")
    if platform.machine() == "x86_64" and any(
        need.startswith(("nvidia-", "cuda-")) for need in requires("torch") or ()
    ):
        advice = "install a CPU build of the same version: torch_npu aborts on CUDA builds of newer torch"
        return Check("torch", WARNING, f"{installed}, a CUDA build", advice)
    return Check("torch", OK, installed)


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


def _release(probe: dict[str, Any]) -> Check:
    """The installed vLLM and its standing, which holds for the torch and torch_npu that it was seen with."""
    release = guard.installed_release()
    known = records.STORE.releases()
    if release is None:
        if guard.installed_tree() is not None:
            return Check("vLLM", FAIL, "installed, but nothing in it says which release it is", "install it anew")
        advice = f"pip install --no-deps vllm=={known[-1]}, or another release from {known[0]} on that is recorded"
        return Check("vLLM", FAIL, "not installed: nothing can be said of patches", advice)
    if records.STORE.get(release) is None:
        return Check(
            "vLLM", FAIL, f"{release}, of which there is no record", f"install a release from {known[0]} to {known[-1]}"
        )
    standing, seen = records.standing(release), records.stacks(release)
    if not seen:
        return Check("vLLM", WARNING, f"{release}: {standing}", "docs/releases.md says which releases were run")
    found = f"{release}: seen on virtual NPUs with {' and with '.join(map(str, seen))}: {standing}"
    if "error" in probe and not probe.get("imports"):
        found = f"{release}: cannot be said as long as torch_npu does not import; {found.partition(': ')[2]}"
        return Check("vLLM", WARNING, found, "make torch_npu import first")
    here = records.Stack(_public(_installed("torch")), _public(_installed("torch_npu")))
    if here not in seen:
        advice = "this stack was not tried: docs/install.md has what each release pins"
        return Check("vLLM", WARNING, f"{found}. Installed: {here}", advice)
    return Check("vLLM", OK, found)


def _public(version: str | None) -> str:
    return version.partition("+")[0] if version is not None else "missing"


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
    checks.append(_model_runner())
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        checks.append(Check("VLLM_TARGET_DEVICE", FAIL, "cpu: vLLM does not look at platform plugins", "unset it"))
    shown = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("HCCL_", "ASCEND_RT_"))
    ]
    checks.append(Check("device and HCCL settings", OK, ", ".join(shown) or "none set"))
    return checks


def _model_runner() -> Check:
    """Which of vLLM's model runners a serve would take, and why."""
    chosen = runner.choose(guard.installed_release(), guard.has_runner_v1())
    if chosen.obstacle is not None:
        return Check("model runner", FAIL, chosen.obstacle, chosen.advice)
    return Check("model runner", OK, f"{chosen.name}, {chosen.why}")


def _devices(found: dict[str, Any]) -> Check:
    if found.get("error"):
        return Check(
            "NPU devices", FAIL, found["error"], "check npu-smi info and the CANN environment; or run under virtual-npu"
        )
    if not found["count"]:
        return Check("NPU devices", FAIL, "none visible", "check npu-smi info and ASCEND_RT_VISIBLE_DEVICES")
    virtual = " (virtual)" if _is_virtual() else ""
    return Check("NPU devices", OK, f"{found['count']} x {found.get('name', 'unknown SoC')}{virtual}")


def _operators(found: dict[str, Any]) -> list[Check]:
    """Whether torch_npu takes what the package passes; of MC2's operators the edition is chosen that there is."""
    if "schemas" not in found:
        return []
    schemas = {
        name: [[operator_calls.Argument(*argument) for argument in arguments] for arguments in overloads]
        for name, overloads in found["schemas"].items()
    }
    needed = (operator_calls.ATTENTION, operator_calls.EXPERTS)
    unfit = operator_calls.unfit_calls(schemas, needed)
    if unfit:
        return [Check("operators", FAIL, "; ".join(unfit), _OTHER_TORCH_NPU)]
    without = {
        use: operator_calls.unfit_calls(schemas, [use])
        for use in (operator_calls.LATENT_ATTENTION, operator_calls.INT8)
    }
    if any(without.values()):
        found_words = "; ".join(f"{use} is not served: {', '.join(unfit)}" for use, unfit in without.items() if unfit)
        return [Check("operators", WARNING, found_words, f"where it is needed, {_OTHER_TORCH_NPU}")]
    return [Check("operators", OK, f"torch_npu takes what the {len(schemas)} that are called are given")]


def _attention(found: dict[str, Any]) -> list[Check]:
    """What a batch's attention in one call takes; what is refused is served slower, or refused from the configuration."""
    answers = found.get("attention")
    if not answers:
        return []
    taken = ", ".join(name for name, reason in answers.items() if reason is None)
    refused = [name for name, reason in answers.items() if reason is not None]
    if not refused:
        return [Check("attention", OK, f"one call for a batch: {taken}")]
    advice = (
        "CANN 9.1 takes them; without, such head sizes take a call for each prompt, windows and sinks are not served"
    )
    shown = f"one call for a batch: {taken or 'none'}; not {', '.join(refused)}"
    return [Check("attention", WARNING, shown, advice)]


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
    row = row._replace(state=state_of(verdict, _strict()), reason=verdict.line, release=verdict.release)
    if row.state is not State.ARMED:
        return row
    record = records.STORE.get(verdict.release) if verdict.release else None
    known = record.targets.get(row.patch.target) if record is not None else None
    return row._replace(aliases=known.aliases if known is not None else ())


def _strict() -> str:
    try:
        return str(envs.VLLM_ASCEND_PATCH_STRICT)
    except envs.EnvError:
        return "error"


def collect(model: str | None = None) -> dict[str, Any]:
    """Everything the command prints, as JSON-ready data. ``ok`` says whether a serve would work, of ``model`` if given.
    Without vLLM there are no rows of patches: there is nothing that they could be compared with."""
    process = _start_probe()
    try:
        patches = patch_rows() if guard.installed_tree() is not None else []
        before, after = _versions(), [*_entry_points(), *_environment()]
    finally:
        found = _finish_probe(process)
    checks = [
        *before,
        _devices(found),
        *_operators(found),
        *_attention(found),
        _release(found),
        *after,
        *(_model(model) if model is not None else []),
    ]
    broken = [row.patch.id for row in patches if row.state in _BROKEN]
    return {
        "ok": not broken and all(check.status != FAIL for check in checks),
        "checks": [check._asdict() for check in checks],
        "patches": [row.as_dict() for row in patches],
    }


def _model(model: str) -> list[Check]:
    """What a checkpoint is, whether a start would refuse it, and what its experts take; weights are not loaded."""
    try:
        config = load_config(model)
    except MoEConfigError as error:
        return [Check("model", FAIL, str(error), "give a folder with config.json, or a model name")]
    plain = os.environ.get("VLLM_MLA_DISABLE", "0").strip() not in ("", "0")
    traits = traits_of(model, config, mla_disabled=plain)
    found = look_at(model, config)
    refused = [*problems(traits, Parallelism(tp_size=1, dp_size=1, expert_parallel=False))]
    checks = []
    if found is not None:
        refused += found.problems
        release = guard.installed_release()
        obstacle = modelslim_obstacle(release) if found.int8_experts is not None and release is not None else None
        refused += [obstacle] if obstacle is not None else []
        checks.append(Check("checkpoint", OK, found.what))
        if found.expert_bytes is not None and found.total_bytes is not None:
            sizes = f"{found.expert_bytes / 2**30:.2f} GiB of {found.total_bytes / 2**30:.2f} GiB, over all ranks"
            checks.append(Check("routed experts", OK, sizes))
    served = [Check("model", FAIL, problem, "see docs/limits.md") for problem in refused]
    served = served or [Check("model", OK, f"{model}: served, by what its files tell")]
    return [*checks, *served, *([_tried(traits.architecture)] if traits.experts else [])]


def _tried(architecture: str) -> Check:
    """What was run of the model's architecture, as docs/models.md has it."""
    words = served_models.words(architecture)
    advice = "" if words != served_models.UNTRIED else "docs/models.md has those that were"
    return Check("architecture", OK, f"{architecture}: {words}", advice)


@click.command("doctor")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--all", "all_patches", is_flag=True, help="List the patches of other vLLM releases, too.")
def doctor(model: str | None, as_json: bool, all_patches: bool) -> int:
    """Say whether a serve would work here, and why not. Exit code 0 only if it would.

    With MODEL, a folder, also what checkpoint that is, whether it is served, and what its experts take.
    """
    report = collect(model)
    if as_json:
        print(json.dumps(report, indent=1))
        return 0 if report["ok"] else 1
    out = console()
    rows = [(check["name"], check["status"], check["found"], check["advice"]) for check in report["checks"]]
    out.print(table("Environment", ("check", "status", "found", "what to do"), rows))
    shown = [row for row in report["patches"] if all_patches or row["state"] != State.NOT_NEEDED]
    patches = [(row["id"], row["state"], str(len(row["aliases"])), row["target"], row["reason"]) for row in shown]
    if patches:
        out.print(table("Patches", ("patch", "state", "aliases", "target", "reason"), patches))
    if left_out := len(report["patches"]) - len(shown):
        out.print(f"{left_out} more patches are for other releases of vLLM; --all lists them.")
    failed = [check["name"] for check in report["checks"] if check["status"] == FAIL]
    failed += [row["id"] for row in report["patches"] if row["state"] in _BROKEN]
    out.print("A serve would work here." if report["ok"] else f"A serve would not work here: {', '.join(failed)}.")
    return 0 if report["ok"] else 1


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(doctor, argv, "doctor")
