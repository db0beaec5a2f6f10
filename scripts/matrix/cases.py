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
import json, sys
from pathlib import Path
from tests.serve import tiny_models
from tokenizers import Tokenizer, models
model = tiny_models.make(sys.argv[1], Path(sys.argv[2]))
tiny_models.cases(model)
words = models.WordLevel({f"t{i}": i for i in range(tiny_models.VOCABULARY)}, unk_token="t0")
names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
(model / "tokenizer_config.json").write_text(json.dumps(names))
Tokenizer(words).save(str(model / "tokenizer.json"))
"""


def cases(family: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint of ``family`` below ``folder``, and its prompts with the oracle's answers."""
    model = folder / family
    if not (model / "tokenizer.json").exists():  # what is written last; for the one release that needs a tokenizer
        # On the CPU; but transformers imports torch_npu where it is installed, and that needs a runtime under it.
        command = npu_command([sys.executable, "-c", _MAKE, family, str(folder)], 1)
        subprocess.run(command, check=True, cwd=_ROOT, env={**os.environ, "VLLM_ASCEND_PATCH": "0"})
    return model, json.loads((model / "cases.json").read_text())
