#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What patching costs: a call of a wrapped function against the bare one, and importing the package against importing
wrapt alone.

Calls: processor time, best of several runs of many calls, so that other load on the machine does not count. The wrap
implementation is the smallest possible one (it calls the original), so the difference is the engine's part plus one
Python call. Imports: processor and wall time in fresh interpreters with cached bytecode, best of several.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import timeit
import types
from collections.abc import Callable
from typing import Any

import vllm_ascend_patch
from vllm_ascend_patch.patching import Kind, Patch, PatchSet

_CALLS = 50_000
_AIM_NS = 500.0  # the most that patching may add to a call; the ratio on the last line is against it
_WORDS: dict[str, Any] = {
    "why": "benchmark",
    "how": "benchmark",
    "upstream": "none: a benchmark",
    "remove_when": "never",
}


def passing(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The smallest wrap."""
    return original(*args, **kwargs)


def subject() -> types.ModuleType:
    """A module with a function, a method and a static method that do nothing."""
    module = types.ModuleType("benchmark_subject")
    exec(
        "def function(a, b=None): return a\n"
        "class Thing:\n"
        "    def method(self, a, b=None): return a\n"
        "    @staticmethod\n"
        "    def static(a, b=None): return a\n",
        vars(module),
    )
    sys.modules[module.__name__] = module
    return module


def per_call(statement: str, module: types.ModuleType, repeats: int) -> float:
    """Nanoseconds of one call, the best of several runs."""
    scope = {**vars(module), "thing": module.Thing()}
    return (
        min(timeit.repeat(statement, timer=time.process_time, globals=scope, number=_CALLS, repeat=repeats))
        / _CALLS
        * 1e9
    )


def calls(repeats: int) -> list[dict[str, Any]]:
    """Bare, wrapped and the difference for each kind of target and call."""
    module = subject()
    cases = {
        "function(1)": "function",
        "function(1, b=2)": "function",
        "thing.method(1)": "Thing.method",
        "thing.static(1)": "Thing.static",
    }
    rows = []
    for statement, path in cases.items():
        patch = Patch(id="p", target=f"{module.__name__}:{path}", kind=Kind.WRAP, implementation=passing, **_WORDS)
        patches = PatchSet([patch])
        bare = per_call(statement, module, repeats)
        patches.apply()
        wrapped = per_call(statement, module, repeats)
        patches.revert()
        rows.append(
            {
                "call": statement,
                "bare_ns": round(bare, 1),
                "wrapped_ns": round(wrapped, 1),
                "overhead_ns": round(wrapped - bare, 1),
            }
        )
    return rows


def import_time(statement: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of an import in a fresh interpreter."""
    program = (
        "import time; w = time.perf_counter(); c = time.process_time()\n"
        f"{statement}\n"
        "print((time.process_time() - c) * 1e3, (time.perf_counter() - w) * 1e3)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment.pop("VLLM_ASCEND_PATCH", None)
    runs = []
    for _ in range(repeats + 1):  # the first one writes the bytecode
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        runs.append([float(number) for number in done.stdout.split()])
    return {
        "import": statement,
        "cpu_ms": round(min(run[0] for run in runs[1:]), 1),
        "wall_ms": round(min(run[1] for run in runs[1:]), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    vllm_ascend_patch.disarm()
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "calls": calls(options.repeats),
        "imports": [import_time(f"import {name}", options.repeats) for name in ("vllm_ascend_patch", "wrapt")],
    }
    for row in report["calls"]:
        bare, wrapped, overhead = row["bare_ns"], row["wrapped_ns"], row["overhead_ns"]
        print(f"{row['call']:20} bare {bare:6.0f} ns  wrapped {wrapped:6.0f} ns  +{overhead:.0f} ns")
    for row in report["imports"]:
        print(f"{row['import']:28} {row['cpu_ms']:6.1f} ms of processor time, {row['wall_ms']:6.1f} ms elapsed")
    worst = max(row["overhead_ns"] for row in report["calls"])
    print(json.dumps({"name": "patch_overhead", "figures": report, "ratio": round(worst / _AIM_NS, 3), "goal": 1.0}))


if __name__ == "__main__":
    main()
