# SPDX-License-Identifier: Apache-2.0
"""Script: vLLM's rejection sampler on an NPU with the port's kernels, on many requests that sample from one distribution.

python -m tests.npu.sampled_rejection       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import importlib
from types import SimpleNamespace

import torch
from vllm.v1.sample import rejection_sampler

from tests.support.processes import report
from vllm_ascend_patch.npu import kernel_overrides

REQUESTS, VOCABULARY, DRAFTS = 20000, 6, 2


def main() -> None:
    importlib.import_module("numba")  # which brings an object that vLLM's search for copies of kernels cannot look into
    kernel_overrides.register()
    torch.manual_seed(3)
    device = torch.device("npu:0")
    target = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10, 0.0])
    drafter = torch.tensor([0.10, 0.10, 0.50, 0.0, 0.20, 0.10])
    result: dict[str, object] = {"target": target.tolist()}
    for name, with_probabilities in (("with draft probabilities", True), ("without", False)):
        total = REQUESTS * DRAFTS
        drafts = torch.multinomial(drafter, total, replacement=True).int()
        output = rejection_sampler.rejection_sample(
            drafts.to(device),
            [DRAFTS] * REQUESTS,
            DRAFTS,
            torch.arange(DRAFTS, total + 1, DRAFTS, dtype=torch.int32, device=device),
            drafter.repeat(total, 1).to(device) if with_probabilities else None,
            target.log().repeat(total, 1).to(device),
            torch.zeros(REQUESTS, 1, dtype=torch.int64, device=device),
            SimpleNamespace(
                all_greedy=False,
                all_random=True,
                temperature=torch.ones(REQUESTS, device=device),
                generators={0: torch.Generator(device=device).manual_seed(1)},
            ),
        )
        first = output[:, 0].cpu()
        result[name] = (torch.bincount(first.long(), minlength=VOCABULARY) / REQUESTS).tolist()
        result[f"{name}: accepted"] = float((first == drafts[::DRAFTS]).float().mean())
    report(result)


if __name__ == "__main__":
    main()
