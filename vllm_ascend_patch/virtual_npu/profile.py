# SPDX-License-Identifier: Apache-2.0
"""What the virtual machine looks like: how many NPUs, of which SoC, with how much memory.

The launcher writes the profile into the environment and every process reads it back from there; nothing else is passed
between them. No torch and no torch_npu here.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

SoC = Literal["A2", "A3"]
Cann = Literal["8.5", "9.1"]

#: `aclrtGetSocName` of one member of each generation. torch_npu derives `get_soc_version()` (220 and 250) from it.
SOC_NAMES: Mapping[SoC, str] = {"A2": "Ascend910B1", "A3": "Ascend910_9391"}

#: torch_npu numbers devices with a signed byte and the stand-in runtime keeps one table row for each.
MAX_DEVICES = 64

DEVICES_VARIABLE = "VIRTUAL_NPU_DEVICES"
SOC_VARIABLE = "VIRTUAL_NPU_SOC"
CANN_VARIABLE = "VIRTUAL_NPU_CANN"
MEMORY_VARIABLE = "VIRTUAL_NPU_MEMORY"

_UNITS = {"": 1, "B": 1}
_UNITS |= {unit: 1024 ** (i + 1) for i, unit in enumerate(("KIB", "MIB", "GIB", "TIB"))}
_UNITS |= {unit: 1024 ** (i + 1) for i, unit in enumerate(("K", "M", "G", "T"))}
_UNITS |= {unit: 1000 ** (i + 1) for i, unit in enumerate(("KB", "MB", "GB", "TB"))}


@dataclass(frozen=True)
class Profile:
    """One virtual machine.

    Attributes:
        devices: number of NPUs, 1 to 64.
        soc: generation, "A2" (Ascend 910B) or "A3" (Ascend 910C).
        memory_bytes: device memory of each NPU, in bytes.
        cann: whose limits of fused attention in layout TND hold: "8.5" for CANN 8.x, "9.1" for what takes bands and sinks.
    """

    devices: int = 2
    soc: SoC = "A2"
    memory_bytes: int = 8 * 1024**3
    cann: Cann = "9.1"

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ValueError(f"a virtual machine has 1 to {MAX_DEVICES} NPUs, not {self.devices}")
        if self.soc not in get_args(SoC):
            raise ValueError(f"SoC {self.soc!r} is not simulated; choose one of {', '.join(get_args(SoC))}")
        if self.cann not in get_args(Cann):
            raise ValueError(f"CANN {self.cann!r} is not simulated; choose one of {', '.join(get_args(Cann))}")
        if self.memory_bytes < 64 * 1024**2:
            raise ValueError(f"{self.memory_bytes} bytes of device memory are too few; torch_npu needs at least 64MiB")

    @property
    def soc_name(self) -> str:
        """The name that ``aclrtGetSocName`` returns."""
        return SOC_NAMES[self.soc]

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Write the profile into ``environment``, for this process's children."""
        environment[DEVICES_VARIABLE] = str(self.devices)
        environment[SOC_VARIABLE] = self.soc
        environment[MEMORY_VARIABLE] = str(self.memory_bytes)
        environment[CANN_VARIABLE] = self.cann


def parse_memory(text: str) -> int:
    """Bytes from "8GiB", "512MiB", "8G", "2GB" or a plain number. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not an amount of memory; write it like 8GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_devices(text: str) -> int:
    """The device count in ``text``. Raises ValueError when it is not a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of devices; write it like 2") from None


def current(environment: Mapping[str, str] = os.environ) -> Profile:
    """The profile of this process. Variables that are not set keep the defaults of ``Profile``."""
    default = Profile()
    devices = environment.get(DEVICES_VARIABLE)
    soc = environment.get(SOC_VARIABLE)
    memory = environment.get(MEMORY_VARIABLE)
    return Profile(
        devices=default.devices if devices is None else parse_devices(devices),
        soc=default.soc if soc is None else cast(SoC, soc),
        memory_bytes=default.memory_bytes if memory is None else parse_memory(memory),
        cann=cast(Cann, environment.get(CANN_VARIABLE, default.cann)),
    )
