# SPDX-License-Identifier: Apache-2.0
"""The tiny models of the matrix and transformers' answers, made once and kept. Needs torch only to make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.server import npu_command

_ROOT = Path(__file__).resolve().parents[2]
_MAKE = """
import sys; from pathlib import Path; from tests.serve import tiny_models
tiny_models.cases(tiny_models.make(sys.argv[1], Path(sys.argv[2])))
"""


def cases(family: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint of ``family`` below ``folder``, and its prompts with the oracle's answers."""
    model = folder / family
    kept = model / "cases.json"
    if not kept.exists():
        # On the CPU; but transformers imports torch_npu where it is installed, and that needs a runtime under it.
        command = npu_command([sys.executable, "-c", _MAKE, family, str(folder)], 1)
        subprocess.run(command, check=True, cwd=_ROOT, env={**os.environ, "VLLM_ASCEND_PATCH": "0"})
    return model, json.loads(kept.read_text())
