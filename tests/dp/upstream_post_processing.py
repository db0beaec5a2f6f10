# SPDX-License-Identifier: Apache-2.0
"""Script: vLLM's own post-processing as the oracle of ``agree``, over N random worlds.

Two comparisons: from the rows that the seam hands back (all worlds), and, where no rank is idle, from the rows that
vLLM's own all-reduce would have made (vLLM has no notion of an idle rank).
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import sys
from dataclasses import replace

import torch
from vllm.v1.worker import dp_utils

from vllm_ascend_patch.core.dp.agreement import agree
from vllm_ascend_patch.core.dp.vector import Field

from .worlds import matrix, random_world

RAW = (Field.TOKENS, Field.PADDED_TOKENS, Field.MICROBATCH_VOTE, Field.GRAPH_MODE)


def upstream(rows: object, parts: int) -> tuple[int, bool, tuple[int, ...]]:
    tensor = torch.tensor(rows, dtype=torch.int32)
    mode = dp_utils._post_process_cudagraph_mode(tensor)
    ubatch = dp_utils._post_process_ubatch(tensor, parts)
    return mode, ubatch, tuple(dp_utils._post_process_dp_padding(tensor, mode != 0 or ubatch).tolist())


def main(count: int) -> None:
    split = 0
    for seed in range(count):
        parts = 2 + seed % 2
        vectors = [replace(vector, pad_vote=False) for vector in random_world(seed)]  # this release has no such vote
        agreement = agree(matrix(vectors), parts)
        expected = (agreement.graph_mode, agreement.microbatch, agreement.padded_tokens)
        assert upstream(agreement.canonical_rows(), parts) == expected, (seed, vectors)
        busy = matrix([replace(v, idle=False) for v in vectors])
        agreement = agree(busy, parts)
        expected = (agreement.graph_mode, agreement.microbatch, agreement.padded_tokens)
        assert upstream([busy[f] for f in RAW], parts) == expected, (seed, vectors)
        split += agreement.microbatch
    assert split, "no world was micro-batched: the comparison is empty"
    print(f"{count} worlds, {split} of them micro-batched")


if __name__ == "__main__":
    main(int(sys.argv[1]))
