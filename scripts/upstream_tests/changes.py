# SPDX-License-Identifier: Apache-2.0
"""Everything that is changed in the copy of upstream's tests: names of devices, rules of skipping, and little more. A table;
the logic of no test is touched.

Model names stay: a local hub has tiny models under upstream's names (``hub.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Change:
    """``old`` becomes ``new`` wherever it stands, in ``files`` below ``tests/`` or, without any, in all of them."""

    old: str
    new: str
    why: str
    files: tuple[str, ...] = ()


_DEVICE = "the device's name"
_RUNS = "skipped without CUDA, but what it tests has an NPU version"

CHANGES = (
    Change('"cuda"', '"npu"', _DEVICE),
    Change('"cuda:', '"npu:', _DEVICE),
    Change(".cuda()", ".npu()", _DEVICE),
    Change("torch.cuda.CUDAGraph", "torch.npu.NPUGraph", _DEVICE),
    Change("torch.cuda.", "torch.npu.", _DEVICE),
    Change('"nccl"', '"hccl"', "the device's collectives"),
    Change("cuda:nccl", "npu:hccl", "the device's collectives"),
    Change(
        "not current_platform.is_cuda_alike()",
        "not current_platform.is_out_of_tree()",
        _RUNS,
        ("kernels/moe/test_fused_topk.py",),
    ),
    Change(
        "not current_platform.is_cuda()",
        "not current_platform.is_out_of_tree()",
        _RUNS,
        ("kernels/moe/test_grouped_topk.py",),
    ),
    Change(
        "not current_platform.is_cuda()",
        "not current_platform.is_out_of_tree()",
        "skipped without CUDA; what it tests is served here, by V1",
        ("v1/distributed/test_pp_dp_v2.py",),
    ),
    Change(
        "use_cpu_gather = current_platform.is_xpu()",
        "use_cpu_gather = True",
        "gloo takes device tensors of CUDA alone",
        ("distributed/test_eplb_execute.py",),
    ),
    Change(
        "    fused_grouped_topk,\n)",
        "    grouped_topk as fused_grouped_topk,\n)",
        "the kernel is CUDA's; its place takes what routers call on other devices",
        ("kernels/moe/test_grouped_topk.py",),
    ),
)


def apply(folder: Path) -> None:
    """Change the tests below ``folder/tests``. A ``ValueError`` names the change that its files have no place for."""
    tests = folder / "tests"
    everywhere = [change for change in CHANGES if not change.files]
    places = dict.fromkeys(everywhere, 0)
    for path in tests.rglob("*.py"):
        before = source = path.read_text(encoding="utf-8")
        for change in CHANGES:
            here = path.relative_to(tests).as_posix() in change.files
            if not here and change.files:
                continue
            if here and change.old not in source:
                raise ValueError(f"{path.relative_to(folder)} has no {change.old!r} any more")
            if not here:
                places[change] += source.count(change.old)
            source = source.replace(change.old, change.new)
        if source != before:
            path.write_text(source, encoding="utf-8")
    for change, count in places.items():
        if not count:
            raise ValueError(f"no test has {change.old!r} any more")
