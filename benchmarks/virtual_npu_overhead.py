# SPDX-License-Identifier: Apache-2.0
"""What the virtual NPU adds to an operator: microseconds on the device against the same call on the CPU, and with its check
of order.

    python benchmarks/virtual_npu_overhead.py      (alone on the machine)

The mix is that of one decode step of a small model; the sizes are small so that the call, not the arithmetic, is measured.
"""

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=1)  # before torch, which loads torch_npu

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

AIM = 15.0  # microseconds added per operator
CHECKED_AIM = 3.0  # how much longer a step may take with the check of order
CHECK = "VIRTUAL_NPU_CHECK_ORDER"

Call = Callable[[dict[str, torch.Tensor]], Any]

#: One decode step's operators, as often as they appear in a layer.
MIX: dict[str, tuple[int, Call]] = {
    "embedding": (1, lambda t: F.embedding(t["ids"], t["table"])),
    "linear": (4, lambda t: F.linear(t["x"], t["w"])),
    "add": (2, lambda t: t["x"] + t["x"]),
    "mul in place": (1, lambda t: t["y"].mul_(0.5)),
    "rms norm": (2, lambda t: F.rms_norm(t["x"], (64,), t["scale"])),
    "silu": (1, lambda t: F.silu(t["x"])),
    "view and transpose": (3, lambda t: t["x"].view(8, 4, 16).transpose(0, 1)),
    "contiguous": (1, lambda t: t["x"].t().contiguous()),
    "bmm": (2, lambda t: torch.bmm(t["q"], t["k"])),
    "softmax": (1, lambda t: t["x"].softmax(-1)),
    "index copy": (2, lambda t: t["y"].index_copy_(0, t["rows"], t["x"])),
    "gather": (1, lambda t: t["x"].index_select(0, t["rows"])),
    "topk": (1, lambda t: torch.topk(t["x"], 2)),
    "cast": (2, lambda t: t["x"].to(torch.bfloat16)),
    "empty": (1, lambda t: torch.empty_like(t["x"])),
}


def tensors(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return {
        "x": make(8, 64),
        "y": make(8, 64),
        "w": make(64, 64),
        "q": make(4, 8, 16),
        "k": make(4, 16, 8),
        "scale": make(64),
        "table": make(100, 64),
        "ids": torch.arange(8).to(device),
        "rows": torch.arange(8).to(device),
    }


def microseconds(call: Call, arguments: dict[str, torch.Tensor], repeats: int, rounds: int) -> float:
    """The median over ``rounds`` of the time of one call, after a warm-up round."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(repeats):
            call(arguments)
        times.append((time.perf_counter() - start) / repeats * 1e6)
    return statistics.median(times[1:])


def on_the_device(options: argparse.Namespace) -> dict[str, float]:
    """Microseconds of each operator of the mix on the NPU."""
    with torch.inference_mode():
        arguments = tensors("npu")
        return {name: microseconds(call, arguments, options.repeats, options.rounds) for name, (_, call) in MIX.items()}


def with_the_check(options: argparse.Namespace) -> dict[str, float]:
    """The same in a process that checks order."""
    command = [sys.executable, __file__, "--repeats", str(options.repeats), "--rounds", str(options.rounds)]
    done = subprocess.run(command, env={**os.environ, CHECK: "line"}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)

    if CHECK in os.environ:  # the process that `with_the_check` started
        print(json.dumps(on_the_device(options)))
        return

    rows: list[dict[str, Any]] = []
    on_npu, checked = on_the_device(options), with_the_check(options)
    with torch.inference_mode():
        on_cpu = tensors("cpu")
        for name, (count, call) in MIX.items():
            cpu = microseconds(call, on_cpu, options.repeats, options.rounds)
            npu = on_npu[name]
            row = {"operator": name, "per_step": count, "cpu_us": cpu, "npu_us": npu, "ratio": npu / cpu}
            rows.append(row | {"checked_us": checked[name]})
    calls = sum(count for count, _ in MIX.values())
    cpu_step = sum(row["cpu_us"] * row["per_step"] for row in rows)
    npu_step = sum(row["npu_us"] * row["per_step"] for row in rows)
    checked_step = sum(row["checked_us"] * row["per_step"] for row in rows)
    added = (npu_step - cpu_step) / calls

    print(f"{'operator':<20}{'per step':>9}{'cpu us':>9}{'npu us':>9}{'ratio':>7}{'checked us':>12}")
    for row in rows:
        print(
            f"{row['operator']:<20}{row['per_step']:>9}{row['cpu_us']:>9.2f}{row['npu_us']:>9.2f}{row['ratio']:>7.2f}"
            f"{row['checked_us']:>12.2f}"
        )
    print(f"{'step':<20}{calls:>9}{cpu_step:>9.2f}{npu_step:>9.2f}{npu_step / cpu_step:>7.2f}{checked_step:>12.2f}")
    print(f"added per operator: {added:.2f} us (aim: under {AIM:.0f} us)")
    print(f"with the check of order: {checked_step / npu_step:.2f} times as long (aim: under {CHECKED_AIM:.0f})")
    figures = {"operators": rows, "added_us": added, "over_cpu": npu_step / cpu_step, "torch": torch.__version__}
    ratio = round(checked_step / npu_step, 3)
    print(json.dumps({"name": "virtual_npu_overhead", "figures": figures, "ratio": ratio, "goal": CHECKED_AIM}))


if __name__ == "__main__":
    main()
