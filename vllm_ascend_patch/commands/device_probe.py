# SPDX-License-Identifier: Apache-2.0
"""What torch_npu sees, as one line of JSON, with the schemas of the operators that are named as arguments. A script for a
process of its own: a broken CANN can hang or kill it.

Imports nothing of this package, so that running it arms nothing: the file that asks for forms of attention is loaded by its
path.
"""

import gc
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

_FORMS = Path(__file__).resolve().parents[1] / "core" / "attention_forms.py"


def probe(operators: list[str]) -> dict[str, Any]:
    """Device count and name, whether torch_npu imports, the schemas of ``operators``, and the error that stands
    in the way."""
    found: dict[str, Any] = {"count": 0}
    try:
        import torch
        import torch_npu
    except Exception as error:  # a broken CANN raises anything from ImportError to RuntimeError
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        found["error"] = f"torch_npu cannot be imported: {type(error).__name__}: {lines[0]}"
        return found
    found["imports"] = True
    found["schemas"] = {name: _overloads(getattr(torch.ops.npu, name, None)) for name in operators}
    try:
        found["count"] = int(torch_npu.npu.device_count())
        if found["count"]:
            found["name"] = str(torch_npu.npu.get_device_name(0))
            found["attention"] = attention()
    except Exception as error:
        found["error"] = f"torch_npu cannot talk to its devices: {type(error).__name__}: {error}"
    return found


def _overloads(packet: Any) -> list[list[tuple[str, bool]]]:
    """Name and whether it is required, of each argument of each overload; nothing for an operator that does not exist."""
    if packet is None:
        return []
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return [[(a.name, not a.has_default_value()) for a in schema.arguments] for schema in schemas]


def attention() -> dict[str, str | None]:
    """What the operators have against kinds of attention in one call for a batch; None for nothing."""
    spec = importlib.util.spec_from_file_location("attention_forms", _FORMS)
    assert spec is not None
    assert spec.loader is not None
    forms = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(forms)
    asked: dict[str, dict[str, Any]] = {
        **{f"head size {size}": {"head_size": size} for size in (64, 128, 192, 256)},
        "sliding windows": {"head_size": 128, "window": True},
        "sinks": {"head_size": 64, "sinks": True},
    }
    return {
        name: forms.refusal(forms.AttentionForm(heads=8, kv_heads=2, dtype="bfloat16", **form))
        for name, form in asked.items()
    }


if __name__ == "__main__":
    gc.disable()  # a person waits for the answer: no collection while thousands of modules load, and no teardown
    print(json.dumps(probe(sys.argv[1:])), file=sys.__stdout__, flush=True)
    os._exit(0)
