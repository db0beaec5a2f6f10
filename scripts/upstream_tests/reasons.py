# SPDX-License-Identifier: Apache-2.0
"""Why a test of upstream's does not pass. A table: the first row that fits a test counts, and what no row fits is
unexplained, which makes the run fail."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .runner import Outcome

UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Reason:
    """Attributes:
    tests: a regular expression, found in ``file::test``.
    says: another, found in what the test said.
    words: the reason.
    kind: ``not applicable``, or ``failed`` where the test asks for something that should be so here, too.
    skips: the test skips itself. What failed shows its source, in which these words stand, too.
    """

    tests: str
    says: str
    words: str
    kind: str = "not applicable"
    skips: bool = False


_UNEQUAL = r"Tensor-likes are not (equal|close)"

REASONS = (
    Reason("", r"XPU not available|torch_xccl requires XPU", "another device's", skips=True),
    Reason("", r"NIXL is not available", "NIXL is not installed", skips=True),
    Reason("", r"Async scheduling is not supported with ray", "upstream skips it on every device", skips=True),
    Reason("", r"Failed to import Ray", "Ray is not installed; `nox -s ray` has this project's own tests over Ray"),
    Reason(r"test_eplb_execute\.py::.*\[pynccl", r"p\.exitcode == 0", "pynccl is a binding of NCCL"),
    Reason(
        r"test_gloo_receive_staging_does_not_force_gpu_sync",
        r"Torch not compiled with CUDA enabled",
        "the check of synchronisation is torch's for CUDA",
    ),
    Reason("", r"Sleep mode allocator is not available", "vLLM has no allocator for sleep mode on out-of-tree devices"),
    Reason(
        r"test_dp_pause_completion_implies_device_idle",
        r"TimeoutError",
        "it keeps the device busy with aclnnSleep, which the virtual NPU has not: its streams are idle whenever one asks",
    ),
    Reason(
        r"test_pp_dp_v2\.py",
        r"Model Runner V1 does not support: pipeline parallelism with async scheduling",
        "pipelines are served by model runner V1, where upstream refuses asynchronous scheduling with them",
        "failed",
    ),
    Reason(
        r"grouped_topk\.py::test_grouped_topk_single_group_(capacity_)?tiers\[.*(softmax|sigmoid-False)",
        _UNEQUAL,
        "softmax scores, and sigmoid scores without normalisation, are chosen by upstream's code for other devices: in the "
        "logits' dtype, and in no order; the test asks for the order and the rounding of the CUDA kernel",
    ),
    Reason(
        r"test_grouped_topk_single_group_nonfinite_scores",
        _UNEQUAL,
        "a logit of plus infinity has a score of 1 here, its sigmoid, and of 0 in the CUDA kernel; ids are distinct and "
        "weights finite with either",
        "failed",
    ),
)


def reason(file: str, outcome: Outcome) -> Reason:
    """Why a test that did not pass did not."""
    for row in REASONS:
        fits = re.search(row.tests, f"{file}::{outcome.test}") and re.search(row.says, outcome.words)
        if fits and row.skips == (outcome.state == "skipped"):
            return row
    return Reason(file, "", UNEXPLAINED, "not applicable" if outcome.state == "skipped" else "failed")
