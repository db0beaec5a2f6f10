# SPDX-License-Identifier: Apache-2.0
"""The process of one part of the self-test: ``python -m vllm_ascend_patch.selftest.part PART [RANK SIZE ADDRESS]``.

Prints one line of JSON per result as soon as there is one, so that what was found before a crash is not lost.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from .result import Result

MARK = "SELFTEST "


def results(part: str, rest: list[str]) -> Iterator[Result]:
    """The results of ``part``, as they come."""
    if part == "model":  # its engine's workers take the device, this process does not
        from . import model

        yield from model.check()
        return
    import torch
    import torch_npu

    from . import device, operators, ranks

    if part == "ranks":
        yield from ranks.check(int(rest[0]), int(rest[1]), rest[2])
        return
    torch_npu.npu.set_device(0)
    yield from {"operators": operators, "device": device}[part].check(torch.device("npu", 0))


if __name__ == "__main__":
    for result in results(sys.argv[1], sys.argv[2:]):
        print(MARK + json.dumps(result.as_dict()), flush=True)
    sys.stdout.flush()
    os._exit(0)  # what libraries do at an interpreter's end is not tested here
