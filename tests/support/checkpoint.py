# SPDX-License-Identifier: Apache-2.0
"""Script: write a tiny checkpoint and the oracle's cases below FOLDER, and report them.

python -m tests.support.checkpoint FOLDER FAMILY [--tokenizer]      (where ``import torch`` works: under the launcher)
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from . import draft_models, latent_models, modelslim_models, tiny_models, w8a8_models
from .processes import report

_LENGTHS = (1, 5, 19, 33, 64, 150)
_TOKENS = 4  # as many as quantised models decide clearly


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "family", help="of tiny_models.py, latent_models.py or glm4_moe (with a drafter); …-w8a8 or …-modelslim in int8"
    )
    parser.add_argument("--tokenizer", action="store_true", help="for releases that ask for one: a word per token id")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    dense, _, form = options.family.partition("-")
    if dense == "glm4_moe":
        path = draft_models.make(options.folder)
    else:
        module = latent_models if dense in latent_models.CONFIGS else tiny_models
        path = module.make(dense, options.folder)
    path, found = quantised(path, form, options.folder) if form else (path, tiny_models.cases(path))
    cases = [asdict(case) for case in found]
    if options.tokenizer:
        write_tokenizer(path)
    report({"path": str(path), "cases": cases})


def quantised(dense: Path, form: str, folder: Path) -> tuple[Path, list[tiny_models.Case]]:
    """An int8 checkpoint below ``folder`` made from ``dense``, ``w8a8`` of compressed-tensors or ``modelslim``; and its
    cases."""
    dynamic = modelslim_models.Export(attention="W8A8_DYNAMIC")
    path = modelslim_models.make(dense, folder, dynamic if form == "w8a8" else modelslim_models.Export(clip=0.9))
    cases = modelslim_models.clear_cases(modelslim_models.oracle(dense, path), _LENGTHS, _TOKENS)
    if form == "w8a8":  # the same integers and scales under other names
        shutil.rmtree(path)
        path, _ = w8a8_models.make(dense, folder)
    (path / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    return path, cases


def write_tokenizer(model: Path) -> None:
    """Words ``t0``, ``t1``, … for the token ids; ``tokenizer.json`` is written last."""
    from tokenizers import Tokenizer, models

    words = models.WordLevel({f"t{i}": i for i in range(tiny_models.VOCABULARY)}, unk_token="t0")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    Tokenizer(words).save(str(model / "tokenizer.json"))


if __name__ == "__main__":
    main()
