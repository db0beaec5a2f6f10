# SPDX-License-Identifier: Apache-2.0
"""vLLM's profiler option on NPUs: what upstream does with ``torch.profiler`` is done with ``torch_npu.profiler``.

Names are mapped in worker processes, when a profiler was asked for; upstream's wrapper (schedules, delays, file names) stays
as it is. Recordings of the CPU alone, as the front end makes them, remain torch's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch_npu.profiler
from torch_npu.profiler.scheduler import ProfilerAction
from vllm.logger import init_logger

logger = init_logger(__name__)

_KINDS = frozenset({"torch"})
_ACTIVITIES = ("CPU", "PrivateUse1")
# What upstream calls the device of an out-of-tree platform, by release.
_ON_DEVICE = frozenset({torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.PrivateUse1})
_PARSE = "import sys; from torch_npu.profiler.profiler import analyse; analyse(sys.argv[1])"


def check_profiler(vllm_config: Any) -> None:
    """Raise ``ValueError`` for a profiler, or activities of it, that NPUs do not have."""
    config = getattr(vllm_config, "profiler_config", None)
    kind = getattr(config, "profiler", None)
    if kind is None:
        return
    if kind not in _KINDS:
        raise ValueError(f"the profiler {kind!r} of --profiler-config does not run on Ascend NPUs; supported: torch")
    refused = set(getattr(config, "torch_profiler_activities", None) or ()) - set(_ACTIVITIES)
    if refused:
        raise ValueError(
            f"torch_profiler_activities {', '.join(sorted(refused))} of --profiler-config are not recorded on Ascend NPUs; "
            f"supported: {', '.join(_ACTIVITIES)}"
        )


def map_profiler_names(vllm_config: Any) -> None:
    """Have ``torch.profiler`` record NPUs, where vLLM's configuration asks for it. For worker processes; idempotent."""
    if not _wanted(vllm_config) or isinstance(torch.profiler.profile, _Profile):
        return
    _allow_npu()
    torch.profiler.profile = _Profile(torch.profiler.profile)  # type: ignore[assignment, misc]
    torch.profiler.tensorboard_trace_handler = _handler_maker(torch.profiler.tensorboard_trace_handler)


def _wanted(vllm_config: Any) -> bool:
    """Newer releases have it in the configuration, older ones in the environment."""
    config = getattr(vllm_config, "profiler_config", None)
    if config is not None:
        return getattr(config, "profiler", "torch") == "torch" and bool(config.torch_profiler_dir)
    from vllm import envs

    return bool(getattr(envs, "VLLM_TORCH_PROFILER_DIR", None))


def _allow_npu() -> None:
    """Newer releases have tables of what each device type records."""
    try:
        from vllm.profiler import wrapper
    except ImportError:
        return
    entries = {
        "_SUPPORTED_PROFILER_KINDS": _KINDS,
        "_DEFAULT_TORCH_PROFILER_ACTIVITIES": _ACTIVITIES,
        "_SUPPORTED_TORCH_PROFILER_ACTIVITIES": frozenset(_ACTIVITIES),
    }
    for table, entry in entries.items():
        if hasattr(wrapper, table):
            getattr(wrapper, table)["npu"] = entry


class _Profile:
    """In the place of ``torch.profiler.profile``: torch's own for the CPU alone, else torch_npu's."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original

    def __call__(self, *, activities: Iterable[Any] | None = None, **arguments: Any) -> Any:
        recorded = set(activities or ())
        if not recorded & _ON_DEVICE:
            return self._original(activities=activities, **arguments)
        return NPUProfile(cpu=torch.profiler.ProfilerActivity.CPU in recorded, **arguments)


class NPUProfile:
    """torch_npu's profiler with the interface of torch's, as far as upstream uses it.

    A recording is made when it starts: older releases make the profiler before a worker has its device, and torch_npu would
    take the first one.
    """

    def __init__(
        self,
        *,
        cpu: bool,
        schedule: Callable[[int], Any] | None = None,
        on_trace_ready: Callable[[Any], None] | None = None,
        **arguments: Any,
    ) -> None:
        self._cpu = cpu
        self._schedule = None if schedule is None else lambda step: ProfilerAction[schedule(step).name]
        self._on_trace_ready = on_trace_ready
        self._arguments = arguments
        self._recording: Any = None

    @property
    def profiler(self) -> Any:
        """Upstream asks whether metadata can be added yet: None when not."""
        return self._recording

    def start(self) -> None:
        """torch_npu keeps one folder and name per process, which a handler sets when it is made: here, when it is used."""
        if isinstance(self._on_trace_ready, _Handler):
            self._on_trace_ready.choose_folder()
        activity = torch_npu.profiler.ProfilerActivity
        self._recording = torch_npu.profiler.profile(
            activities=[activity.CPU, activity.NPU] if self._cpu else [activity.NPU],
            schedule=self._schedule,
            on_trace_ready=self._on_trace_ready,
            experimental_config=torch_npu.profiler._ExperimentalConfig(
                profiler_level=torch_npu.profiler.ProfilerLevel.Level1,
                aic_metrics=torch_npu.profiler.AiCMetrics.AiCoreNone,
            ),
            **self._arguments,
        )
        self._recording.start()

    def step(self) -> None:
        self._recording.step()

    def stop(self) -> None:
        self._recording.stop()

    def __enter__(self) -> NPUProfile:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add_metadata_json(self, key: str, value: str) -> None:
        self._recording.add_metadata_json(key, value)

    def key_averages(self, *_: Any, **__: Any) -> NPUProfile:
        """torch_npu has no table of averages; see ``table``."""
        return self

    def table(self, *_: Any, **__: Any) -> str:
        """What upstream prints and writes in place of one."""
        return f"torch_npu writes times per operator to files: {self._recording.prof_if.prof_path}"


def _handler_maker(original: Callable[..., Any]) -> Callable[..., Any]:
    def tensorboard_trace_handler(dir_name: str, worker_name: str | None = None, use_gzip: bool = False) -> _Handler:
        return _Handler(dir_name, worker_name, original(dir_name, worker_name, use_gzip))

    return tensorboard_trace_handler


class _Handler:
    """Takes a finished recording: torch's is given to torch's handler, torch_npu's is parsed into a trace.

    Parsing has a process of its own, since torch_npu's forks, which a daemon, as vLLM's workers are, must not.
    """

    def __init__(self, folder: str, worker_name: str | None, original: Callable[[Any], None]) -> None:
        self._folder = folder
        self._worker_name = worker_name
        self._original = original

    def choose_folder(self) -> None:
        torch_npu.profiler.tensorboard_trace_handler(self._folder, self._worker_name, analyse_flag=False)

    def __call__(self, profile: Any) -> None:
        if not isinstance(profile, torch_npu.profiler.profile):
            self._original(profile)
            return
        recorded = Path(profile.prof_if.prof_path)
        done = subprocess.run(
            [sys.executable, "-c", _PARSE, str(recorded)], capture_output=True, text=True, check=False
        )
        trace = recorded / "ASCEND_PROFILER_OUTPUT" / "trace_view.json"
        if trace.exists():
            logger.info("Profiler: the trace is %s", trace)
        else:
            logger.warning(
                "Profiler: the recording in %s could not be parsed into a trace (exit code %d: %s). It can be parsed later: "
                "torch_npu.profiler.profiler.analyse(%r)",
                recorded,
                done.returncode,
                (done.stdout + done.stderr).strip()[-500:],
                str(recorded),
            )
