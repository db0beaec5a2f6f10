# SPDX-License-Identifier: Apache-2.0
"""Turns the torch_npu that was just imported into the driver of a virtual NPU, in this process.

Called once by the launcher's sitecustomize when the import of torch_npu has finished; importing this file does nothing.
"""

import functools


@functools.cache
def activate() -> None:
    """Switch the check of order on where it is wanted; install the allocator, the aten kernels, the hccl backend and the
    reference kernels of namespace npu, in order."""
    from . import extension, hccl, order, registry

    module = extension.load()
    order.install()
    module.install_allocator()
    module.install_kernels()
    hccl.register_backend()
    registry.install()
