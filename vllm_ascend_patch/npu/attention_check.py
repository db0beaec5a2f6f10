# SPDX-License-Identifier: Apache-2.0
"""Asks the installed CANN, before a process is started, whether it takes a model's sliding windows and sinks.

In a process of its own, for these models alone: a context on the device, which the answer takes, would stay in the user's
process for good. Other models' layers are asked by the workers, who have another layout to fall back on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache

from vllm.logger import init_logger

from vllm_ascend_patch.core import attention_forms
from vllm_ascend_patch.core.attention_forms import AttentionForm
from vllm_ascend_patch.core.model_support import cann_problem, keeps_windows
from vllm_ascend_patch.core.model_traits import ModelTraits

logger = init_logger(__name__)

_SECONDS = 120.0


def needs_tnd(traits: ModelTraits) -> bool:
    """Whether a layer attends in a way that the operators have in layout TND alone."""
    return keeps_windows(traits) or traits.sinks


def check_attention_forms(traits: ModelTraits, tp_size: int) -> None:
    """Raise ``ValueError`` for windows or sinks that the installed CANN does not take; says nothing where nobody answers."""
    if not needs_tnd(traits):
        return
    answers = ask(forms_of(traits, tp_size))
    if answers is None:
        logger.warning("Ascend NPU: no process could ask CANN about this model's attention; the workers will.")
        return
    reason = next((answer for answer in answers if answer is not None), None)
    if reason is not None:
        raise ValueError(cann_problem(traits, reason))


def forms_of(traits: ModelTraits, tp_size: int) -> tuple[AttentionForm, ...]:
    """The kinds of layers of one rank that have no other layout; where a model has windows, other layers may have none."""
    windows = ([False] if traits.sinks else []) + ([True] if keeps_windows(traits) else [])
    return tuple(
        AttentionForm(
            heads=max(traits.num_heads // tp_size, 1),
            kv_heads=max(traits.num_kv_heads // tp_size, 1),
            head_size=traits.window_head_size if window else traits.head_size,
            dtype=traits.dtype or "bfloat16",
            window=window,
            sinks=traits.sinks,
        )
        for window in windows
    )


@cache
def ask(forms: tuple[AttentionForm, ...]) -> list[str | None] | None:
    """What the operators have against each form, None for nothing; None for all when no answer came."""
    asked = json.dumps([asdict(form) for form in forms])
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ASCEND_PATCH"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", attention_forms.__file__, asked],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
        return list(json.loads(done.stdout.strip().splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None
