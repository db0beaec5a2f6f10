# SPDX-License-Identifier: Apache-2.0
"""The engines' own exchange, in which they ask each other whether any has work left: names the rank behind a broken one, and
ends with the engine's workers. And the end of a server whose engine has failed.

An engine's process need have no model runner, hence no session and no watchdog. Nothing is kept here: who is in the group
stands in the group's store.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from vllm_ascend_patch.core.dp import roster
from vllm_ascend_patch.core.dp.lost_workers import ends_without
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE
from vllm_ascend_patch.seams.by_name import parameters_of

logger = logging.getLogger(__name__)

_COMMANDS = ("vllm.entrypoints.cli.main", "vllm.entrypoints.openai.api_server")
"""Modules of vLLM's own programs. A script that has an engine decides for itself what becomes of it without."""

_AFTER_ALL_ELSE = -1000
"""Priority among what multiprocessing finalises at a process's end; children have been joined by then."""


def stateless_init_dp_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The engines' group, in whose store this process has said who it is."""
    made = original(*args, **kwargs)
    group = made[0] if isinstance(made, tuple) else made  # with its store
    store = _store_of(group)
    if store is not None:
        roster.enrol(store, roster.Member.this_process(group.rank()))
    return made


def exchange(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An exchange over that group; raises ``RankMissingError`` where it breaks, ends the process where it never does
    although a worker of this engine has ended."""
    try:
        with ends_without(multiprocessing.active_children(), "the engines' exchange of who has work"):
            return original(*args, **kwargs)
    except RuntimeError as error:
        group = (dict(zip(parameters_of(original), args, strict=False)) | kwargs)["dp_group"]
        raise roster.explain(error, _store_of(group), group.rank(), group.size()) from error


def wait_for_engines(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Wait until an engine process of this server has ended. If one has with an error, so does vLLM's command, once it has
    shut down."""
    _at_the_commands_end(_failed_engine, args[0])
    return original(*args, **kwargs)


def validate_alive(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Raises where a message is an engine's last. vLLM's command then shuts down at once and kills the engine, which has not
    ended by itself yet; at its end it has an error's code."""
    try:
        return original(*args, **kwargs)
    except Exception:
        _at_the_commands_end(str, "an engine said that it had failed")
        raise


def _failed_engine(manager: Any) -> str:
    """The engine process that ended with an error, in words; empty if none did."""
    codes = {process.name: process.exitcode for process in manager.processes}
    if hasattr(manager, "failed_proc_name"):
        failed = manager.failed_proc_name
    else:  # a negative code is a signal, which may have been the manager's own
        failed = next((name for name, code in codes.items() if code is not None and code > 0), None)
    return "" if failed is None else f"{failed} ended with exit code {codes.get(failed)}"


def _at_the_commands_end(why: Callable[[Any], str], about: Any) -> None:
    """The last that vLLM's own command does: end with the watchdog's code if ``why(about)`` gives a reason."""
    if _is_vllms_command():
        multiprocessing.util.Finalize(None, _end, args=(why, about), exitpriority=_AFTER_ALL_ELSE)


def _end(why: Callable[[Any], str], about: Any) -> None:
    if reason := why(about):
        logger.critical("%s: this server ends with code %d", reason, EXIT_CODE)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def _is_vllms_command() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return _COMMANDS[0] in sys.modules or (spec is not None and spec.name in _COMMANDS)


def _store_of(group: dist.ProcessGroup) -> dist.Store | None:
    """The group's store, where torch hands it out (not in 2.7)."""
    get = getattr(group, "get_group_store", None)
    return get() if get is not None else None
