# SPDX-License-Identifier: Apache-2.0
"""What a thread is doing, in words: read from its stack by another thread, so that the others can be told.

Only names of functions and line numbers are read, never variables: looking at those of a running frame would keep tensors
alive. Which names mean what is the caller's to say, who knows the framework.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType

_LONGEST = 240


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Names (``co_name``) of a framework's functions by which the stack of a rank's main thread is read.

    Attributes:
        calls: functions that call what a rank is told to do; what the innermost of them has called is what it does.
        waits: functions called by those in which a rank waits to be told something, or for the other ranks.
    """

    calls: frozenset[str] = frozenset()
    waits: frozenset[str] = frozenset()


NO_LANDMARKS = Landmarks()


@dataclass(frozen=True, slots=True)
class Activity:
    """What a thread does.

    Attributes:
        text: for a message, e.g. "runs Worker.reload_weights, now in read (loader.py:12)"; empty if nothing is known.
        idle: it waits to be told something; nothing keeps it from its next step. False where that is not certain.
    """

    text: str = ""
    idle: bool = False


def activity_of(thread: int, landmarks: Landmarks) -> Activity:
    """Read a thread's stack.

    Args:
        thread: its ``threading.get_ident()``.
        landmarks: without any, only the innermost function is named.
    """
    innermost = sys._current_frames().get(thread)
    if innermost is None:
        return Activity()
    called: FrameType | None = None
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code.co_name not in landmarks.calls:
        called, frame = frame, frame.f_back
    if frame is None or called is None:
        called = innermost
    elif called.f_code.co_name in landmarks.waits:
        return Activity(f"waits in {_name(called)}", idle=True)
    text = f"runs {_name(called)}"
    text += f", now in {_name(innermost)}" if innermost is not called else ""
    return Activity(f"{text} ({PurePath(innermost.f_code.co_filename).name}:{innermost.f_lineno})"[:_LONGEST])


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return getattr(code, "co_qualname", code.co_name).rpartition("<locals>.")[2]  # Python 3.10 has no qualified one
