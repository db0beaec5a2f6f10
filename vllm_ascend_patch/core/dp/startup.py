# SPDX-License-Identifier: Apache-2.0
"""Builds a rank's session: fingerprint, watchdog, groups, transports, the choice among them. Collective: all ranks call it.

The process groups come from the caller, who knows how its framework enumerates ranks. They are made when the fingerprints
are found equal and no earlier: settings decide how many there are, and ranks that make different ones wait for each other
in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .activity import NO_LANDMARKS, Landmarks
from .board import Board, Progress, private_store
from .calibrate import choose, detect_blocking_wait
from .channel import DPChannel
from .errors import DPSyncError
from .fingerprint import exchange_fingerprints
from .metrics import StepCounters
from .session import DPSession
from .shared_mapping import connect
from .transport import CpuTransport, DeviceTransport, Transport
from .vector import LAYOUT_VERSION, NUM_FIELDS
from .watchdog import Watchdog

logger = logging.getLogger(__name__)

TRANSPORTS = ("auto", "device", "cpu", "shared")

STARTUP_TIMEOUT_SECONDS = 1800.0
"""Ranks may reach the start-up exchange this far apart (torch.distributed's default timeout for gloo groups)."""

_generation = 0


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Settings that all ranks share.

    Attributes:
        transport: one of ``TRANSPORTS``.
        timeout: seconds until a missing rank is an error.
        num_microbatches: parts of a micro-batched step.
        fingerprint: what must be equal on all ranks; these settings are added to it.
        name: keeps several groups of one job apart (one data-parallel group per tensor-parallel rank).
        log_interval: seconds between counter lines in the log, 0 for none.
        padding_when_eager: see ``agree``.
        landmarks: how the main thread is read for the other ranks, see ``activity.py``.
    """

    transport: str
    timeout: float
    num_microbatches: int
    fingerprint: Mapping[str, str]
    name: str
    log_interval: float = 60.0
    padding_when_eager: bool = True
    landmarks: Landmarks = NO_LANDMARKS

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise ValueError(f"unknown DP metadata transport {self.transport!r}; use one of {', '.join(TRANSPORTS)}")


@dataclass(frozen=True, slots=True)
class Groups:
    """Process groups with the ranks of one data-parallel group that only the step sync uses.

    Attributes:
        cpu: on gloo.
        device: on the device's backend; None without a device, or when ``SessionConfig.transport`` needs none.
    """

    cpu: dist.ProcessGroup
    device: dist.ProcessGroup | None = None


def compare_settings(config: SessionConfig, store: dist.Store, device: torch.device) -> None:
    """Find out whether all processes of the job run the same, before any group is made. Only the store is needed.

    ``start_session`` does it again for those of its own groups, for callers that have no earlier place.

    Args:
        store: any store of the job.
        device: of this rank.

    Raises:
        FingerprintMismatchError, RankMissingError: start-up cannot go on.
    """
    _compare(config, _next_store(store), device)


def start_session(
    config: SessionConfig,
    store: dist.Store,
    rank: int,
    size: int,
    make_groups: Callable[[], Groups],
    device: torch.device,
) -> DPSession:
    """Exchange fingerprints, start the watchdog, build and choose the transport.

    All processes of the job call it, whichever data-parallel group they are in: the groups of all are made together.

    Args:
        store: any store of the job.
        rank: this rank in its data-parallel group.
        size: ranks in the group, at least 2.
        make_groups: called when all processes of the job are known to run the same.
        device: where the device group's tensors live.

    Raises:
        FingerprintMismatchError, RankMissingError: start-up cannot go on.
        DPSyncError: the "shared" transport was asked for, but the ranks have no memory in common.
        ValueError: the "device" transport was asked for without a device group.
    """
    own_store = _next_store(store)
    _compare(config, own_store, device)
    progress = Progress()
    board = Board(dist.PrefixStore(config.name, own_store), rank, size, config.landmarks)
    watchdog = Watchdog(board, progress, config.timeout, hosts_store=_hosts_store())
    progress.enter("making process groups", blocking=True)
    watchdog.start()
    try:
        groups = make_groups()
        progress.enter("start-up", blocking=False)
        transport = _build_transport(config, rank, size, groups, device, watchdog)
    except Exception as error:
        watchdog.report_failure(f"{type(error).__name__}: {error}")
        raise
    counters = StepCounters(rank, config.log_interval)
    channel = DPChannel(transport, progress, watchdog, config.num_microbatches, counters, config.padding_when_eager)
    if rank == 0:
        logger.info(
            "DP metadata: %s per step over %d ranks, watchdog %g s",
            transport.describe(),
            size,
            config.timeout,
        )
    return DPSession(channel)


def _next_store(store: dist.Store) -> dist.Store:
    """A store with a connection of its own and keys that nothing before has used, the same on all ranks."""
    global _generation
    _generation += 1
    return private_store(store, f"vllm_ascend_patch/dp/{_generation}", timedelta(seconds=STARTUP_TIMEOUT_SECONDS))


def _hosts_store() -> bool:
    return dist.get_rank() == 0  # torch.distributed keeps a job's store in the process of rank 0


def _compare(config: SessionConfig, store: dist.Store, device: torch.device) -> None:
    fingerprint = dict(config.fingerprint) | {
        "step vector layout": str(LAYOUT_VERSION),
        "VLLM_ASCEND_PATCH_DP_SYNC": config.transport,
        "timeout": f"{config.timeout:g} s",
        "micro-batches": str(config.num_microbatches),
        "device type": device.type,
    }
    exchange_fingerprints(
        store,
        dist.get_rank(),
        dist.get_world_size(),
        fingerprint,
        timedelta(seconds=STARTUP_TIMEOUT_SECONDS),
        _hosts_store(),
        config.timeout,
    )


def _build_transport(
    config: SessionConfig,
    rank: int,
    size: int,
    groups: Groups,
    device: torch.device,
    watchdog: Watchdog,
) -> Transport:
    cpu = CpuTransport(groups.cpu, rank, size, NUM_FIELDS)
    if config.transport == "cpu":
        return cpu
    candidates: list[Transport] = [cpu]
    if config.transport in ("device", "auto") and groups.device is not None:
        on_device = DeviceTransport(groups.device, rank, size, NUM_FIELDS, device)
        detect_blocking_wait(on_device, watchdog.check)
        candidates.append(on_device)
    if config.transport in ("shared", "auto"):
        shared, reason = connect(cpu, watchdog.check)
        if shared is not None:
            candidates.append(shared)
        elif config.transport == "shared":
            watchdog.stop()  # all ranks leave with this error; that the others do is no news
            raise DPSyncError(
                "VLLM_ASCEND_PATCH_DP_SYNC=shared needs memory that all data-parallel ranks share, but there is none: "
                f"{reason}. Ranks on several hosts, or in containers that do not share /dev/shm, take auto, cpu or device"
            )
        elif rank == 0:
            logger.info("DP metadata: shared memory is no candidate: %s", reason)
    if config.transport == "auto":
        return choose(candidates, watchdog.check) if len(candidates) > 1 else cpu
    if len(candidates) == 1:
        raise ValueError("the DP metadata transport 'device' needs a device process group, but there is none")
    return candidates[1]
