# SPDX-License-Identifier: Apache-2.0
"""The engines' own exchange, in which they ask each other whether any has work left: names the rank behind a broken one.

An engine's process need have no model runner, hence no session and no watchdog. Nothing is kept here: who is in the group
stands in the group's store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from vllm_ascend_patch.core.dp import roster
from vllm_ascend_patch.seams.by_name import parameters_of


def stateless_init_dp_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The engines' group, in whose store this process has said who it is."""
    made = original(*args, **kwargs)
    group = made[0] if isinstance(made, tuple) else made  # with its store
    store = _store_of(group)
    if store is not None:
        roster.enrol(store, roster.Member.this_process(group.rank()))
    return made


def exchange(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An exchange over that group; raises ``RankMissingError`` where it breaks."""
    try:
        return original(*args, **kwargs)
    except RuntimeError as error:
        group = (dict(zip(parameters_of(original), args, strict=False)) | kwargs)["dp_group"]
        raise roster.explain(error, _store_of(group), group.rank(), group.size()) from error


def _store_of(group: dist.ProcessGroup) -> dist.Store | None:
    """The group's store, where torch hands it out (not in 2.7)."""
    get = getattr(group, "get_group_store", None)
    return get() if get is not None else None
