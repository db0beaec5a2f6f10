# SPDX-License-Identifier: Apache-2.0
"""Script: write a tiny checkpoint and the oracle's cases below FOLDER. `python -m tests.dp.checkpoint FOLDER FAMILY`"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.serve import draft_models, tiny_models


def main(folder: Path, family: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = draft_models.make(folder) if family == "glm4_moe" else tiny_models.make(family, folder)
    cases = [{"prompt": case.prompt, "answer": case.answer} for case in tiny_models.cases(path)]
    print("CHECKPOINT " + json.dumps({"path": str(path), "cases": cases}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
