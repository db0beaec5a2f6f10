# SPDX-License-Identifier: Apache-2.0
"""The start-up check that all ranks run the same thing.

A fingerprint is a flat mapping of names to strings. Ranks exchange theirs over the store and compare; ranks that differ
are named together with what differs. No versions are read here: the caller says what belongs into the fingerprint.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

from .errors import FingerprintMismatchError, RankMissingError


def compare(fingerprints: Sequence[Mapping[str, str]]) -> None:
    """Check that all fingerprints are equal.

    Args:
        fingerprints: one per rank, in rank order.

    Raises:
        FingerprintMismatchError: names every rank that differs from the majority (from rank 0 in a tie), and how.
    """
    texts = [json.dumps(dict(f), sort_keys=True) for f in fingerprints]
    counts = Counter(texts)
    if len(counts) == 1:
        return
    top = max(counts.values())
    reference_rank = next(rank for rank, text in enumerate(texts) if counts[text] == top)
    reference = fingerprints[reference_rank]
    lines = []
    for rank, mine in enumerate(fingerprints):
        differing = [
            f"{key}: {mine.get(key, 'absent')!r} instead of {reference.get(key, 'absent')!r}"
            for key in sorted({*mine, *reference})
            if mine.get(key) != reference.get(key)
        ]
        if differing:
            lines.append(f"rank {rank}: " + ", ".join(differing))
    raise FingerprintMismatchError(
        f"data-parallel ranks were started differently (compared with rank {reference_rank}): "
        + "; ".join(lines)
        + ". Give every rank the same packages and settings and start again."
    )


_LAST_READER = timedelta(seconds=10)


def exchange_fingerprints(
    store: dist.Store, rank: int, size: int, fingerprint: Mapping[str, str], timeout: timedelta, hosts_store: bool
) -> None:
    """Publish this rank's fingerprint, read everybody's, compare.

    Args:
        hosts_store: the store lives in this process. Then it does not end with an error before the others have read
            what they need to find the same one.

    Raises:
        RankMissingError: a rank did not publish in time; named.
        FingerprintMismatchError: see `compare`; raised on every rank.
    """
    store.set(f"fingerprint/{rank}", json.dumps(dict(fingerprint), sort_keys=True))
    keys = [f"fingerprint/{r}" for r in range(size)]
    try:
        store.wait(keys, timeout)
    except (RuntimeError, ValueError) as error:
        missing = [r for r, key in enumerate(keys) if not store.check([key])]
        if not missing:
            raise
        raise RankMissingError(
            f"start-up: no fingerprint from data-parallel rank(s) {', '.join(map(str, missing))} within "
            f"{timeout.total_seconds():.0f} s. Is the patch set active in their process?"
        ) from error
    texts = [store.get(key) for key in keys]
    store.set(f"fingerprint/read/{rank}", "1")
    try:
        compare([json.loads(text) for text in texts])
    except FingerprintMismatchError:
        if hosts_store:
            with contextlib.suppress(RuntimeError, ValueError):  # a rank that died meanwhile
                store.wait([f"fingerprint/read/{r}" for r in range(size)], _LAST_READER)
        raise
