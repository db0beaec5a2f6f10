# SPDX-License-Identifier: Apache-2.0
"""How ranks come by memory in common: all or none of them, with a reason, and nothing stays in the directory."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.dp import Vote, shared_mapping
from vllm_ascend_patch.core.dp.errors import DPSyncError

from .sessions import host_session

SIZE = 3


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in shared memory that no other run on this machine uses; forked ranks have it, too."""
    with tempfile.TemporaryDirectory(dir=shared_mapping.DIRECTORY) as made:
        monkeypatch.setattr(shared_mapping, "DIRECTORY", Path(made))
        yield Path(made)


def _files() -> list[str]:
    return sorted(path.name for path in shared_mapping.DIRECTORY.iterdir())


def _mapped() -> int:
    """Mappings of this process that belong to a file of ours."""
    return Path("/proc/self/maps").read_text().count("/vllm_ascend_patch.")


def _step(session: Any, tokens: int) -> tuple[int, ...]:
    session.announce(Vote(tokens, tokens), with_prefill=False)
    return session.resolve(Vote(tokens, tokens)).tokens


def _serving(rank: int, size: int) -> list[Any]:
    session = host_session(rank, size, transport="shared")
    files = _files()
    return [_step(session, rank + 1), files, _mapped()]


def test_the_name_is_gone_as_soon_as_all_have_the_memory() -> None:
    for tokens, files, mapped in values_of(run_ranks(_serving, SIZE)):
        assert tokens == (1, 2, 3)
        assert files == []
        assert mapped == 1


def _killed_while_serving(rank: int, size: int) -> None:
    session = host_session(rank, size, transport="shared")
    _step(session, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_behind_when_every_rank_is_killed() -> None:
    outcomes = run_ranks(_killed_while_serving, SIZE)
    assert [o.exit_code for o in outcomes] == [-signal.SIGKILL] * SIZE
    assert _files() == []


def _killed_while_starting(rank: int, size: int) -> str:
    if rank == 0:
        create = shared_mapping._create

        def create_and_tell(path: Path, length: int) -> mmap.mmap:
            made = create(path, length)
            exchange = shared_mapping.exchange
            calls = iter(range(2))

            def die_second(*args: Any) -> Any:
                if next(calls):
                    os.kill(os.getpid(), signal.SIGKILL)
                return exchange(*args)

            shared_mapping.exchange = die_second  # type: ignore[assignment]
            return made

        shared_mapping._create = create_and_tell
    with pytest.raises(RuntimeError):  # gloo's, or the watchdog's
        host_session(rank, size, 5.0, transport="shared")
    return "saw it"


def test_the_others_remove_the_name_when_the_rank_that_made_it_dies_early() -> None:
    outcomes = run_ranks(_killed_while_starting, SIZE)
    assert [o.value for o in outcomes] == [None, "saw it", "saw it"]
    assert _files() == []


def _restarted(rank: int, size: int) -> list[Any]:
    seen = []
    for start in range(3):
        session = host_session(rank, size, transport="shared")
        seen.append(_step(session, 10 * start + rank))
        session.close()
        dist.barrier()
    return [seen, _files()]


def test_a_session_can_be_started_again_in_the_same_processes() -> None:
    for seen, files in values_of(run_ranks(_restarted, SIZE, together=True)):
        assert seen == [(0, 1, 2), (10, 11, 12), (20, 21, 22)]
        assert files == []


def _full(path: Path, length: int) -> mmap.mmap:
    def refuse(file: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as scope:
        scope.setattr(os, "posix_fallocate", refuse)
        return CREATE(path, length)


CREATE, OPEN = shared_mapping._create, shared_mapping._open
ALL = None
# what goes wrong: on which rank, which name of `shared_mapping` is what there, what the reason says
TROUBLES: dict[str, tuple[int | None, str, Any, str]] = {
    "no directory": (ALL, "DIRECTORY", Path("/nowhere"), r"rank 0 cannot create .* /nowhere: No such file"),
    "full": (0, "_create", _full, r"rank 0 cannot create a file of 1152 bytes in /dev/shm/.*: No space left"),
    "another directory": (
        1,
        "_open",
        lambda path, length: OPEN(Path("/tmp", path.name), length),
        r"rank 1 cannot open .*, which rank 0 created: No such file",
    ),
    "other memory": (
        2,
        "_open",
        lambda path, length: mmap.mmap(-1, length),
        r"rank\(s\) 0, 1, 2 opened .*, but it is not the memory that the others write to",
    ),
    "too short": (1, "_open", lambda path, length: mmap.mmap(os.open(__file__, os.O_RDONLY), 1 << 30), "rank 1 .*Inv"),
}


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _troubled(rank: int, size: int, trouble: str) -> list[Any]:
    victim, name, value, _ = TROUBLES[trouble]
    if victim in (rank, ALL):
        setattr(shared_mapping, name, value)
    log = _Lines()
    logging.getLogger("vllm_ascend_patch").addHandler(log)
    logging.getLogger("vllm_ascend_patch").setLevel(logging.INFO)
    start = time.monotonic()
    with pytest.raises(DPSyncError) as error:
        host_session(rank, size, transport="shared")
    took = time.monotonic() - start
    session = host_session(rank, size, transport="auto")
    return [str(error.value), took, session.channel.transport.name, _step(session, 1), log.lines]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_fails_on_one_rank_is_the_same_error_on_all_and_auto_does_without(trouble: str) -> None:
    reason = TROUBLES[trouble][3]
    results = values_of(run_ranks(_troubled, SIZE, trouble))
    assert _files() == []
    assert len({message for message, *_ in results}) == 1
    for rank, (message, took, chosen, tokens, lines) in enumerate(results):
        assert re.fullmatch(
            rf"VLLM_ASCEND_PATCH_DP_SYNC=shared needs memory .*: {reason}.*take auto, cpu or device", message
        ), message
        assert took < 25  # looking the host up may take seconds
        assert (chosen, tokens) == ("cpu", (1, 1, 1))
        told = [line for line in lines if "shared memory is no candidate: " in line]
        assert len(told) == (rank == 0)
        assert not [line for line in lines if "cannot go on" in line]


def test_auto_measures_it_against_gloo() -> None:
    def start(rank: int, size: int) -> str:
        return host_session(rank, size, transport="auto").channel.transport.name

    assert len(set(values_of(run_ranks(start, 2, together=True)))) == 1
