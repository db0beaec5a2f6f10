# SPDX-License-Identifier: Apache-2.0
"""What one model runner serves with: THE mutable state of the seams, kept on the runner and gone with it.

Nothing else in ``seams/`` is written after import. One module variable says whose step is running, for what upstream calls
without a runner: its all-reduce, the platform's hooks, a layer. Every wrapped way into a runner makes its own state the
running one, so engines that live in one process, after each other or side by side, do not see each other's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_ascend_patch.core.dp import DPSession, DraftVote, StepAgreement, Vote
from vllm_ascend_patch.core.moe.active_mask import ActiveMask
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts
from vllm_ascend_patch.core.moe.comm.base import MoECommMethod
from vllm_ascend_patch.core.moe.forward_tokens import ForwardTokens
from vllm_ascend_patch.core.moe.limits import MoEFacts
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, Topology

_ATTRIBUTE = "_ascend_serving"


@dataclass(eq=False, slots=True)
class Votes:
    """Upstream's decisions that are the same whenever they are asked for.

    Attributes:
        decode: this rank's vote for a decoding step, by what upstream looks at (``step/vote.py``).
        drafts: a drafter forward's vote, by token count and whether graphs may be used; None where there is none.
    """

    decode: dict[tuple[int, ...], Vote] = field(default_factory=dict)
    drafts: dict[tuple[int, bool], DraftVote | None] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class MoELayers:
    """What the runner's MoE layers share. Graphs and layers keep what they were given; nothing here is replaced.

    Attributes:
        topologies: by whether experts are distributed and whether tokens are sequence parallel.
        communicator: the one that the dispatch/combine operators use, once it was needed.
        selectors: one for each kind of layer, so that a choice is logged and counted once.
        methods: one object per name, topology and placement.
        mask: the active rows that captured graphs read, once a graph was to be captured.
        said: lines of the log that are for all layers alike.
    """

    topologies: dict[tuple[bool, bool], Topology] = field(default_factory=dict)
    communicator: Mc2Communicator | None = None
    selectors: dict[tuple[MoEFacts, SchedulerFacts, str], MethodSelector] = field(default_factory=dict)
    methods: dict[tuple[str, Topology, ExpertPlacement], MoECommMethod[Any, Any]] = field(default_factory=dict)
    mask: ActiveMask | None = None
    said: set[str] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Step:
    """The step that is running.

    Attributes:
        capturing: upstream's decision code runs for its vote alone, and is left at its all-reduce.
        idle: the step is one of a rank without work.
        dummy: the forward is one without requests, of whatever kind: idle, profiling, warm-up, capture.
        expected: what upstream will ask the ranks for; for releases whose ranks tell each other token counts only.
        agreed: the agreement of a dummy step that had to know it before upstream asks; for the same releases.
        layer: the token counts for the MoE layer whose forward is on the stack, else None.
        tasks: where attention's calls are recorded while model runner V2 captures a whole step, else None.
        attention: the metadata that model runner V2 has made for the step's forward, by layer.
        greedy: model runner V2 verifies drafts of requests that are all greedy.
        penalties: a request of model runner V2's step has penalties for tokens that it generated.
        one_token_each: every request of model runner V2's step decodes one token, and nothing is drafted.
        refused: waits for the drafts of each request that the step refused; None where the device alone is asked.
    """

    capturing: bool = False
    idle: bool = False
    dummy: bool = False
    expected: Vote | None = None
    agreed: StepAgreement | None = None
    layer: ForwardTokens | None = None
    tasks: Any = None
    attention: Any = None
    greedy: bool = False
    penalties: bool = False
    one_token_each: bool = False
    refused: Callable[[], list[int]] | None = None


@dataclass(eq=False)
class Serving:
    """One model runner's state.

    Attributes:
        config: vLLM's configuration; None for layers that run without a model runner, as in upstream's own tests.
        patches: ids of the patches that are applied in this process, for the ranks' fingerprint.
        session: the data-parallel step sync; None without data parallelism.
    """

    config: Any = None
    patches: tuple[str, ...] = ()
    session: DPSession | None = None
    votes: Votes = field(default_factory=Votes)
    moe: MoELayers = field(default_factory=MoELayers)
    step: Step = field(default_factory=Step)

    def close(self) -> None:
        """Leave the data-parallel group in order, and let go of process groups and device memory. Idempotent."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
        self.votes, self.moe, self.step = Votes(), MoELayers(), Step()


_running: Serving | None = None


def begin(runner: Any, config: Any, patches: tuple[str, ...] = ()) -> Serving:
    """New state for ``runner``, which is about to be built; it becomes the running one."""
    serving = Serving(config, patches)
    setattr(runner, _ATTRIBUTE, serving)
    weakref.finalize(runner, _end, serving).atexit = False  # at exit the watchdog leaves the group by itself
    return _run(serving)


def entering(runner: Any) -> Serving:
    """The state of ``runner``, which becomes the running one. Every wrapped way into a runner begins with it."""
    serving: Serving | None = getattr(runner, _ATTRIBUTE, None)
    if serving is None:
        return begin(runner, getattr(runner, "vllm_config", None))
    return _run(serving)


def current() -> Serving:
    """The state of the runner whose step is running, or ran last."""
    return _running if _running is not None else _run(Serving())


def end(runner: Any) -> None:
    """The runner serves no more. Idempotent."""
    serving = getattr(runner, _ATTRIBUTE, None)
    if serving is not None:
        _end(serving)


def _run(serving: Serving) -> Serving:
    global _running
    _running = serving
    return serving


def _end(serving: Serving) -> None:
    global _running
    if _running is serving:
        _running = None
    serving.close()
