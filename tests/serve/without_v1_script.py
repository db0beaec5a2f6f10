# SPDX-License-Identifier: Apache-2.0
"""Script: load vLLM's plugins and every module that a patch is declared for, and report what became of the patches."""

from __future__ import annotations

import importlib
import logging
import os

from tests.support.processes import report


def main() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    import vllm_ascend_patch

    logging.getLogger("vllm_ascend_patch").addHandler(handler)
    import vllm
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    states: dict[str, list[str]] = {}
    for row in vllm_ascend_patch.status():
        if str(row.state) != "not needed":
            importlib.import_module(row.patch.place.module)
    for row in vllm_ascend_patch.status():
        states.setdefault(str(row.state), []).append(row.patch.id)
    report(
        {
            "vllm": vllm.__file__,
            "runner": os.environ.get("VLLM_USE_V2_MODEL_RUNNER"),
            "log": next((line for line in lines if "model runner" in line), None),
            "applied": states.pop("applied", []),
            "not needed": states.pop("not needed", []),
            "others": states,
        }
    )


if __name__ == "__main__":
    main()
