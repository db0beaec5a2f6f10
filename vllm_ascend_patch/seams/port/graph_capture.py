# SPDX-License-Identifier: Apache-2.0
"""Lets a process group with this port's communicator be on a captured stream, which upstream allows to its own two only.

The check is there to put their custom all-reduce into capture mode; HCCL's collectives are captured as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def graph_capture(original: Any, group: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Upstream's context, entered as by a group without a device communicator."""
    with ExitStack() as stack:
        communicator, group.device_communicator = group.device_communicator, None
        try:
            entered = stack.enter_context(original(group, *args, **kwargs))
        finally:
            group.device_communicator = communicator
        yield entered
