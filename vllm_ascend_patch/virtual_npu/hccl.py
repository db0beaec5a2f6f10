# SPDX-License-Identifier: Apache-2.0
"""The `hccl` backend of torch.distributed on virtual NPUs."""


def register_backend() -> None:
    """Put the simulated backend in the place of torch_npu's."""
