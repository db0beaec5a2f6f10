# SPDX-License-Identifier: Apache-2.0
"""How many drafts a step refused, from what it sampled."""

from __future__ import annotations

from collections.abc import Sequence


def refused_drafts(drafts: Sequence[int], sampled: Sequence[int]) -> list[int]:
    """Drafts of each request that were refused; 0 for one without drafts, whatever it sampled.

    Args:
        drafts: how many of each request were verified.
        sampled: tokens that each request got of it: the accepted drafts and one more; 0 where they are discarded.
    """
    return [verified + 1 - got if verified else 0 for verified, got in zip(drafts, sampled, strict=True)]
