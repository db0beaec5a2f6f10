# SPDX-License-Identifier: Apache-2.0
"""Which Ascend generation this is and which editions of the MoE operators the installed torch_npu has.

The only file of the core that asks the device who it is; everything else is told.
"""

from __future__ import annotations

import enum
from functools import lru_cache

from .errors import MoEConfigError


class Soc(enum.Enum):
    """Ascend generations with dispatch/combine operators."""

    A2 = "A2"
    A3 = "A3"

    @classmethod
    def from_version(cls, version: int) -> Soc:
        """Map ``torch_npu.npu.get_soc_version()`` to a generation.

        Numbers: the SocVersion enum in the torch_npu 2.7.1 and 2.13.0 wheels: 220..225 are Ascend910B1..B4_1 (A2),
        250..256 Ascend910_93xx (A3). 104 is called Ascend910B there but is a first-generation chip.
        """
        if 220 <= version <= 229:
            return cls.A2
        if 250 <= version <= 259:
            return cls.A3
        raise MoEConfigError(
            f"SoC version {version} is not supported; supported are Atlas A2 (Ascend910B, 220..229) and "
            "Atlas A3 (Ascend910_93, 250..259)"
        )


@lru_cache(maxsize=1)
def detect_soc() -> Soc:
    """The generation of the device of this process. Initialises the device."""
    import torch_npu

    return Soc.from_version(int(torch_npu.npu.get_soc_version()))


@lru_cache(maxsize=1)
def dispatch_operator_version() -> int:
    """2 when torch_npu has the v2 dispatch and combine operators, else 1."""
    import torch_npu

    names = ("npu_moe_distribute_dispatch_v2", "npu_moe_distribute_combine_v2")
    return 2 if all(hasattr(torch_npu, name) for name in names) else 1


@lru_cache(maxsize=1)
def routing_operator_version() -> int:
    """2 when ``npu_moe_init_routing_v2`` takes the number of rows that it shall make and ``npu_moe_finalize_routing``
    float32 weights beside bf16 rows, else 1.

    The first is documented for torch_npu 2.13 and not for 2.7.1; the second from CANN 8.5 on (aclnnMoeFinalizeRoutingV2),
    with which 2.7.1 need not be installed. An argument that only the newer wheel has tells them apart.
    """
    import torch
    import torch_npu  # noqa: F401  (registers the operators)

    arguments = torch.ops.npu.npu_moe_init_routing_v2.default._schema.arguments
    return 2 if "x_dtype" in {argument.name for argument in arguments} else 1
