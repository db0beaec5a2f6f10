# SPDX-License-Identifier: Apache-2.0
"""The installed vLLM: untouched when nobody asks, patched everywhere when somebody does, whole again after revert."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_devices
from tests.support.processes import result_of, run
from vllm_ascend_patch.releases import declarations, guard, records

SCRIPT = str(Path(__file__).with_name("real_vllm.py"))
RELEASE = guard.installed_release()
PATCHES = [patch for patch in declarations.patches() if RELEASE is not None and records.covers(patch, RELEASE)]
TARGETS = sorted({patch.target for patch in PATCHES if patch.kind != "add"})

pytestmark = [
    pytest.mark.skipif(RELEASE is None or records.STORE.get(RELEASE) is None, reason="no recorded vLLM is installed"),
    pytest.mark.timeout(400),
]


def outcome_of(command: list[str], *arguments: str, **variables: str) -> dict[str, Any]:
    done = run([*command, *(arguments or TARGETS)], seconds=380, environment=without_devices(**variables))
    result: dict[str, Any] = result_of(done)
    return result


def test_nothing_is_touched_without_the_variable_and_the_import(virtual_npu: list[str]) -> None:
    """On a machine with NPUs, so that only the missing wish keeps the package out."""
    outcome = outcome_of([*virtual_npu, SCRIPT, "untouched"])
    assert not outcome["platform"].startswith("vllm_ascend_patch")
    assert outcome["imported"] == []
    assert outcome["changed"] == outcome["marked"] == []
    assert outcome["failed"] == {}
    assert outcome["loaded"] == len(TARGETS)


def test_without_the_variable_and_the_import_an_engine_comes_to_what_upstream_makes_of_the_machine(
    virtual_npu: list[str], tmp_path: Path
) -> None:
    """Upstream is the same vLLM that loads no plugin at all. It knows no platform here, and stops."""
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = outcome_of([*virtual_npu, SCRIPT, "engine"], str(tmp_path))
    upstream = outcome_of([*virtual_npu, SCRIPT, "engine"], str(tmp_path), VLLM_PLUGINS="")
    assert ours == upstream
    assert upstream["imported"] == []
    assert upstream["platform"] == "UnspecifiedPlatform"
    assert upstream["outcome"] != "started"


def test_with_the_variable_every_patch_is_applied_and_revert_undoes_it(virtual_npu: list[str]) -> None:
    outcome = outcome_of([*virtual_npu, SCRIPT, "applied"], VLLM_ASCEND_PATCH="1")
    wrong = {
        patch.id: outcome["rows"][patch.id]
        for patch in PATCHES
        if outcome["rows"][patch.id]["state"] != ("applied" if patch.default else "disabled")
    }
    assert not wrong
    assert outcome["left"] == outcome["lost"] == []
