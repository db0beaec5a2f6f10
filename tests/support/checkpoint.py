# SPDX-License-Identifier: Apache-2.0
"""Script: write a tiny checkpoint and the oracle's cases below FOLDER, and report them.

python -m tests.support.checkpoint FOLDER FAMILY [--tokenizer]      (where ``import torch`` works: under the launcher)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from . import draft_models, latent_models, tiny_models
from .processes import report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("family", help="of tiny_models.py or latent_models.py, or glm4_moe, with a drafter")
    parser.add_argument("--tokenizer", action="store_true", help="for releases that ask for one: a word per token id")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.family == "glm4_moe":
        path = draft_models.make(options.folder)
    else:
        module = latent_models if options.family in latent_models.CONFIGS else tiny_models
        path = module.make(options.family, options.folder)
    cases = [asdict(case) for case in tiny_models.cases(path)]
    if options.tokenizer:
        write_tokenizer(path)
    report({"path": str(path), "cases": cases})


def write_tokenizer(model: Path) -> None:
    """Words ``t0``, ``t1``, … for the token ids; ``tokenizer.json`` is written last."""
    from tokenizers import Tokenizer, models

    words = models.WordLevel({f"t{i}": i for i in range(tiny_models.VOCABULARY)}, unk_token="t0")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    Tokenizer(words).save(str(model / "tokenizer.json"))


if __name__ == "__main__":
    main()
