# SPDX-License-Identifier: Apache-2.0
"""Environment variables: every bad value and every misspelt name or patch id is an error that says what is valid."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import ROOT
from tests.support.processes import run_python
from vllm_ascend_patch import envs
from vllm_ascend_patch.patching import Patch, UnknownPatch
from vllm_ascend_patch.releases import wanted as lists

from .declare import patch, tagged


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(envs.PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("variable", envs.VARIABLES.values(), ids=lambda variable: variable.name)
def test_every_default_is_valid_and_documented(variable: envs.Variable) -> None:
    variable.read({})
    assert variable.meaning.endswith(".")
    assert variable.values
    assert variable.when


@pytest.mark.parametrize(
    ("name", "value", "listed"),
    [
        ("VLLM_ASCEND_PATCH", "maybe", "1 or 0"),
        ("VLLM_ASCEND_PATCH_STRICT", "loud", "error, warn, off"),
        ("VLLM_ASCEND_PATCH_LOG", "chatty", "debug, info, warning, error"),
        ("VLLM_ASCEND_PATCH_DP_SYNC", "gpu", "auto, device, cpu, shared"),
        ("VLLM_ASCEND_PATCH_DP_TIMEOUT", "-1", "above 0"),
        ("VLLM_ASCEND_PATCH_DP_TIMEOUT", "nan", "above 0"),
        ("VLLM_ASCEND_PATCH_DP_TIMEOUT", "soon", "seconds"),
        ("VLLM_ASCEND_PATCH_MOE_COMM", "mc3", "auto, allgather, mc2, alltoall, hierarchical"),
        ("VLLM_ASCEND_PATCH_LINKS", "196", "two numbers above 0 with a comma"),
        ("VLLM_ASCEND_PATCH_LINKS", "196,nan", "two numbers above 0 with a comma"),
        ("VLLM_ASCEND_PATCH_LINKS", "196,-25", "two numbers above 0 with a comma"),
    ],
)
def test_a_bad_value_is_an_error_that_lists_the_valid_ones(
    name: str, value: str, listed: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(envs.EnvError, match=re.escape(f"{name}={value!r}")) as caught:
        getattr(envs, name)
    assert listed in str(caught.value)
    with pytest.raises(envs.EnvError):
        envs.validate()


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("STRICT", " WARN ", "warn"),
        ("DP_SYNC", "", "auto"),
        ("DP_TIMEOUT", "1.5", 1.5),
        ("LINKS", "196, 25", (196.0, 25.0)),
    ],
)
def test_values_are_forgiving_about_case_and_space(name: str, value: str, parsed: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(f"{envs.PREFIX}_{name}", value)
    assert getattr(envs, f"{envs.PREFIX}_{name}") == parsed


def test_a_misspelt_name_is_an_error_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ASCEND_PATCH_DISABEL", "x")
    with pytest.raises(envs.EnvError, match="did you mean VLLM_ASCEND_PATCH_DISABLE"):
        envs.validate()


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = envs.VLLM_ASCEND_PATCH_NOTHING


PATCHES = [
    patch("m:a", tagged, id="dp-sync"),
    patch("m:b", tagged, id="dp-step"),
    patch("m:c", tagged, id="extra", default=False),
]


def wanted(monkeypatch: pytest.MonkeyPatch, enable: str = "", disable: str = "") -> set[str]:
    monkeypatch.setenv("VLLM_ASCEND_PATCH_ENABLE", enable)
    monkeypatch.setenv("VLLM_ASCEND_PATCH_DISABLE", disable)
    lists.check(PATCHES)
    return {one.id for one in PATCHES if lists.why_disabled(one) is None}


@pytest.mark.parametrize(
    ("enable", "disable", "ids"),
    [
        ("", "", {"dp-sync", "dp-step"}),
        ("extra", "", {"dp-sync", "dp-step", "extra"}),
        ("*", "", {"dp-sync", "dp-step", "extra"}),
        ("", "*", set()),
        ("", "dp-*", set()),
        ("dp-sync", "*", {"dp-sync"}),
        ("", " dp-sync , ", {"dp-step"}),
        ("*", "dp-sync", {"dp-step", "extra"}),
    ],
)
def test_the_lists_choose_the_patches(monkeypatch: Any, enable: str, disable: str, ids: set[str]) -> None:
    assert wanted(monkeypatch, enable, disable) == ids


@pytest.mark.parametrize(("enable", "disable"), [("dp-snyc", ""), ("", "dp-snyc"), ("moe-*", ""), ("extra", "extra")])
def test_a_misspelt_or_contradictory_id_is_an_error_that_lists_all(monkeypatch: Any, enable: str, disable: str) -> None:
    with pytest.raises(UnknownPatch, match="dp-sync, dp-step, extra"):
        wanted(monkeypatch, enable, disable)


def test_every_disabled_patch_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(one: Patch) -> str:
        return lists.why_disabled(one) or ""

    monkeypatch.setenv("VLLM_ASCEND_PATCH_DISABLE", "dp-sync,dp-*")
    assert "named in VLLM_ASCEND_PATCH_DISABLE" in reason(PATCHES[0])
    assert "matched by VLLM_ASCEND_PATCH_DISABLE" in reason(PATCHES[1])
    assert "VLLM_ASCEND_PATCH_ENABLE" in reason(PATCHES[2])


def test_importing_the_package_loads_the_standard_library_and_nothing_else() -> None:
    """What keeps the import light; how long it takes is in ``benchmarks/patch_overhead.py``."""
    program = """
        import sys
        before = set(sys.modules)
        import vllm_ascend_patch
        loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(loaded - set(sys.stdlib_module_names)))
        import os
        assert os.environ["VLLM_ASCEND_PATCH"] == "1"
    """
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    assert run_python(program, environment=environment).strip() == "['vllm_ascend_patch']"


def test_disarming_gives_the_environment_back() -> None:
    run_python("""
        import os
        import vllm_ascend_patch
        vllm_ascend_patch.disarm()
        assert "VLLM_ASCEND_PATCH" not in os.environ
        vllm_ascend_patch.arm()
        assert os.environ["VLLM_ASCEND_PATCH"] == "1"
        vllm_ascend_patch.revert()
        assert "VLLM_ASCEND_PATCH" not in os.environ
        os.environ["VLLM_ASCEND_PATCH"] = "yes"
        vllm_ascend_patch.arm()
        vllm_ascend_patch.disarm()
        assert os.environ["VLLM_ASCEND_PATCH"] == "yes"
    """)


def test_an_explicit_zero_keeps_the_import_from_arming() -> None:
    environment = {"VLLM_ASCEND_PATCH": "0", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    run_python(
        """
        import vllm_ascend_patch
        assert {row.state for row in vllm_ascend_patch.status()} == {"idle"}
        vllm_ascend_patch.arm()
        assert {row.state for row in vllm_ascend_patch.status()} == {"idle"}
        """,
        environment=environment,
    )


def test_the_files_of_the_engine_name_no_upstream() -> None:
    """patching/ is generic: it knows wrapt, and nothing of vLLM, NPUs or MoE."""
    for path in (Path(ROOT) / "vllm_ascend_patch" / "patching").glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import) ", line)]
        assert not [line for line in imports if re.search(r"vllm(?!_ascend_patch\.patching)|torch|\.\.\w", line)], path
