# SPDX-License-Identifier: Apache-2.0
"""Runs commands under the launcher, and Python programs on several ranks, with time limits. Holds no checks."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: What an outer launcher wrote: a test that starts its own must not inherit it.
_LAUNCHER_VARIABLES = (
    "ASCEND_HOME_PATH",
    "ASCEND_OPP_PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TASK_QUEUE_ENABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "VIRTUAL_NPU_DEVICES",
    "VIRTUAL_NPU_MEMORY",
    "VIRTUAL_NPU_RUNTIME",
    "VIRTUAL_NPU_SOC",
    "VLLM_ASCEND_PATCH",
)

_ALL_ANSWERED = "all-answered"


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without any launcher's traces."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    return {**environment, "OMP_NUM_THREADS": "1", **(extra or {})}


def launcher(
    arguments: Sequence[str], *, seconds: float = 120, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m vllm_ascend_patch virtual-npu ARGUMENTS`. Raises TimeoutError, leaving no process behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu", *arguments],
        cwd=ROOT,
        env=clean_environment() if environment is None else dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise TimeoutError(f"{arguments} ran longer than {seconds} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python(code: str, *options: str, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python `code` under the launcher with `options`."""
    arguments = [*options, "--", sys.executable, "-c", code]
    return launcher(arguments, seconds=seconds, environment=clean_environment(environment))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(
    function: Callable[..., Any], rank: int, size: int, port: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    try:
        result: Any = {"value": function(rank, size, *arguments)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
    # The others may still find out what this rank knows already; its end would tell them something else.
    test = multiprocessing.parent_process()
    while test is not None and test.is_alive() and not Path(folder, _ALL_ANSWERED).exists():
        time.sleep(0.01)
    os._exit(0)  # what hangs at exit after a failure on purpose is not what is tested


def ranks(
    function: Callable[..., Any], size: int, folder: Path, *arguments: Any, seconds: float = 120
) -> list[dict[str, Any] | None]:
    """Call `function(rank, size, *arguments)` in `size` processes on virtual NPUs and return what each left.

    An entry is `{"value": ...}`, `{"error": ..., "trace": ...}`, or None for a rank that died before it could answer.
    Raises TimeoutError when a rank is still running after `seconds`; no process is left behind.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes = [
        context.Process(target=_rank, args=(function, rank, size, port, str(folder), arguments)) for rank in range(size)
    ]
    files = [folder / f"{rank}.json" for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    try:
        while late := [
            rank for rank, process in enumerate(processes) if process.is_alive() and not files[rank].exists()
        ]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {late} of {size} were still running after {seconds} s")
            time.sleep(0.02)
        (folder / _ALL_ANSWERED).touch()
        for process in processes:
            process.join(10)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [json.loads(file.read_text()) if file.exists() else None for file in files]
