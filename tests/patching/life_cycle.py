# SPDX-License-Identifier: Apache-2.0
"""The engine of the life-cycle harness: one forked process per order of events, and pristine children for the spawns.

The driver process stays as it was before the first event. Each order runs in a fork of it. When an order spawns, it
sends its environment to the driver, which forks another pristine process and gives it that environment: what a spawned
process is, without starting an interpreter 720 times. Equal environments get the same answer, because nothing else
reaches such a process. A few orders start a real interpreter.
"""

import gc
import json
import os
from collections.abc import Callable
from typing import Protocol

from .permutations import orders


class Stage(Protocol):
    """What a driver knows how to do."""

    interpreter_every: int
    """Which orders start a real interpreter: those whose number divides by this."""

    def perform(self, event: str) -> None:
        """Do one event other than a spawn."""

    def seen(self) -> str:
        """ "absent", "stock" or "patched": the target in this process."""

    def child(self) -> str:
        """Be a fresh process: load plugins, import the target, say what is seen."""

    def interpreter(self) -> str:
        """Start a real interpreter that does the same."""


def _run(stage: Stage, order: tuple[str, ...], spawn: Callable[[], str]) -> list[str]:
    observations = []
    for event in order:
        if event == "spawn":
            observations.append(spawn())
        else:
            stage.perform(event)
            observations.append(stage.seen())
    return observations


def _in_fork(action: Callable[[], str], output: int) -> int:
    """Run ``action`` in a fork and write its result as one line; the process id."""
    pid = os.fork()
    if pid == 0:
        try:
            text = action()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(output, text.replace("\n", " ").encode() + b"\n")
        os._exit(0)
    return pid


def _pristine(stage: Stage, environment: dict[str, str]) -> str:
    """What a fresh process with this environment sees."""

    def fresh() -> str:
        os.environ.clear()
        os.environ.update(environment)
        return stage.child()

    answer_out, answer_in = os.pipe()
    pid = _in_fork(fresh, answer_in)
    os.close(answer_in)
    with os.fdopen(answer_out) as answer:
        text = answer.read().strip()
    os.waitpid(pid, 0)
    return text


def drive(stage: Stage, share: int, shares: int) -> None:
    """Run this process's share of the orders; one JSON line each on standard output: ``[order, observations]``."""
    gc.collect()
    gc.freeze()  # or every fork's first collection copies all the memory that it shares with the driver
    gc.disable()
    answers: dict[str, str] = {}
    for number, order in enumerate(orders()):
        if number % shares != share:
            continue
        request_out, request_in = os.pipe()
        reply_out, reply_in = os.pipe()

        def spawn(request_in: int = request_in, reply_out: int = reply_out) -> str:
            os.write(request_in, json.dumps(dict(sorted(os.environ.items()))).encode() + b"\n")
            with os.fdopen(os.dup(reply_out)) as reply:
                return reply.readline().strip()

        ask = stage.interpreter if number % stage.interpreter_every == 0 else spawn

        def whole(order: tuple[str, ...] = order, ask: Callable[[], str] = ask) -> str:
            return json.dumps([order, _run(stage, order, ask)])

        pid = _in_fork(whole, 1)
        os.close(request_in)
        with os.fdopen(request_out) as requests:
            for line in requests:
                if line not in answers:
                    answers[line] = _pristine(stage, json.loads(line))
                os.write(reply_in, answers[line].encode() + b"\n")
        os.close(reply_in)
        os.close(reply_out)
        os.waitpid(pid, 0)
