# SPDX-License-Identifier: Apache-2.0
"""The start-up check that all ranks run the same thing.

A fingerprint is a flat mapping of names to strings. Ranks exchange theirs over the store and compare; ranks that differ
are named together with what differs. No versions are read here: the caller says what belongs into the fingerprint. Nothing
but the store is needed, so that the check can come before any collective call, whose number settings may decide.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

from .errors import FingerprintMismatchError, RankMissingError

logger = logging.getLogger(__name__)


def compare(fingerprints: Sequence[Mapping[str, str]], hosts: Sequence[str] = ()) -> None:
    """Check that all fingerprints are equal.

    Args:
        fingerprints: one per rank, in rank order.
        hosts: where each rank runs, for the message; named if the ranks run on several.

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
    named = [reference_rank]
    lines = []
    for rank, mine in enumerate(fingerprints):
        differing = [
            f"{key}: {mine.get(key, 'absent')!r} instead of {reference.get(key, 'absent')!r}"
            for key in sorted({*mine, *reference})
            if mine.get(key) != reference.get(key)
        ]
        if differing:
            named.append(rank)
            lines.append(f"rank {rank}: " + ", ".join(differing))
    where = ""
    if len(set(hosts)) > 1:
        where = " (" + ", ".join(f"rank {rank} on {hosts[rank]}" for rank in sorted(named)) + ")"
    raise FingerprintMismatchError(
        f"data-parallel ranks were started differently (compared with rank {reference_rank}): "
        + "; ".join(lines)
        + f". Give every rank the same packages and settings and start again{where}."
    )


_LAST_READER = timedelta(seconds=10)


def exchange_fingerprints(
    store: dist.Store,
    rank: int,
    size: int,
    fingerprint: Mapping[str, str],
    timeout: timedelta,
    hosts_store: bool,
    remind_seconds: float = 60.0,
) -> None:
    """Publish this rank's fingerprint, read everybody's, compare.

    Args:
        hosts_store: the store lives in this process. Then it does not end with an error before the others have read
            what they need to find the same one.
        remind_seconds: how often the log names the ranks that are still waited for.

    Raises:
        RankMissingError: a rank did not publish in time; named.
        FingerprintMismatchError: see ``compare``; raised on every rank.
    """
    record = {"host": socket.gethostname(), "fingerprint": dict(fingerprint)}
    store.set(f"fingerprint/{rank}", json.dumps(record, sort_keys=True))
    keys = [f"fingerprint/{r}" for r in range(size)]
    try:
        _wait_for_all(store, rank, keys, timeout.total_seconds(), remind_seconds)
        records = [json.loads(store.get(key)) for key in keys]
        store.set(f"fingerprint/read/{rank}", "1")
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RankMissingError):
            raise
        raise RankMissingError(
            f"start-up: rank {rank} lost the rendezvous store, which lives in the process of rank 0, before all ranks had "
            f"compared their settings ({str(error).splitlines()[0]}); look at the log of rank 0"
        ) from error
    try:
        compare([r["fingerprint"] for r in records], [r["host"] for r in records])
    except FingerprintMismatchError:
        if hosts_store:
            with contextlib.suppress(RuntimeError, ValueError):  # a rank that died meanwhile
                store.wait([f"fingerprint/read/{r}" for r in range(size)], _LAST_READER)
        raise


def _wait_for_all(store: dist.Store, rank: int, keys: Sequence[str], limit: float, remind_seconds: float) -> None:
    """Until all keys are there. Says from time to time whose are not."""
    start = time.monotonic()
    reminder, pause = start + remind_seconds, 0.005
    while not store.check(list(keys)):
        now = time.monotonic()
        if now >= reminder or now - start > limit:
            missing = ", ".join(str(r) for r, key in enumerate(keys) if not store.check([key]))
            if now - start > limit:
                raise RankMissingError(
                    f"start-up: no fingerprint from rank(s) {missing} within {limit:.0f} s. Is the patch set active in "
                    "their process?"
                )
            reminder = now + remind_seconds
            logger.warning(
                "still starting: rank %d has waited %.0f s for rank(s) %s to say what they run",
                rank,
                now - start,
                missing,
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
