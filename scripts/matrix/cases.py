# SPDX-License-Identifier: Apache-2.0
"""The tiny models of the matrix and transformers' answers, made once and kept. Needs torch only to make them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.environment import ROOT, clean_environment
from tests.support.npus import npu_command


def cases(family: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint of ``family`` below ``folder``, and its prompts with the oracle's answers."""
    model = folder / family
    if not (model / "tokenizer.json").exists():  # what is written last; for the one release that needs a tokenizer
        # On the CPU; but transformers imports torch_npu where it is installed, and that needs a runtime under it.
        make = [sys.executable, "-m", "tests.support.checkpoint", str(folder), family, "--tokenizer"]
        command = npu_command(make, 1)
        environment = clean_environment(VLLM_ASCEND_PATCH="0")
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    return model, json.loads((model / "cases.json").read_text())
