# SPDX-License-Identifier: Apache-2.0
"""What this process's ranks agreed on last: the one place from which attention, MoE layers and the trace read it.

Only the holder lives here. The seams fill it, the platform publishes `forward_context_fields` in vLLM's forward context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_ascend_patch.core.attention_state import AttentionDecision

from .agreement import StepAgreement
from .errors import DPSyncError
from .session import DPSession

AGREEMENT_FIELD = "vllm_ascend_patch_agreement"
ATTENTION_FIELD = "vllm_ascend_patch_attention"

_session: DPSession | None = None
_attention: AttentionDecision | None = None


def install_session(session: DPSession | None) -> None:
    """Make `session` this process's; an earlier one leaves its group."""
    global _session
    if _session is not None and _session is not session:
        _session.close()
    _session = session


def current_session() -> DPSession | None:
    """The session, or None without data parallelism."""
    return _session


def set_attention(decision: AttentionDecision | None) -> None:
    """The attention state of the step that is being prepared; None for dummy steps."""
    global _attention
    _attention = decision


def current_attention() -> AttentionDecision | None:
    """The attention state of the step that is running, or None in a dummy step."""
    return _attention


def current_agreement() -> StepAgreement | None:
    """The agreement of the forward that runs, or runs next; None without data parallelism or before the first one."""
    return None if _session is None else _session.current


def forward_context_fields(num_tokens_across_dp: Sequence[int] | None = None) -> dict[str, Any]:
    """Fields for the forward context of the forward that begins now.

    Args:
        num_tokens_across_dp: the padded token counts that the framework passes to the forward, `[dp_size]` ints; checked
            against the agreement. None skips the check, e.g. where the framework has divided them into micro-batches.

    Returns:
        `AGREEMENT_FIELD`: a `StepAgreement` or None; `ATTENTION_FIELD`: an `AttentionDecision` or None.

    Raises:
        DPSyncError: the forward does not run what the ranks agreed on.
    """
    agreement = current_agreement()
    if agreement is not None and num_tokens_across_dp is not None and not agreement.microbatch:
        counts = tuple(int(n) for n in num_tokens_across_dp)
        if counts != agreement.padded_tokens:
            raise DPSyncError(
                f"a forward runs {counts} tokens per data-parallel rank, but the ranks agreed on {agreement.padded_tokens} "
                f"(step {agreement.sequence}, {agreement.kind.name.lower()})"
            )
    return {AGREEMENT_FIELD: agreement, ATTENTION_FIELD: _attention}
