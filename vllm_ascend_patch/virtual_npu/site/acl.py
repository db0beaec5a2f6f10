# SPDX-License-Identifier: Apache-2.0
"""Stands in for CANN's Python module ``acl`` (pyACL) as far as Ray asks it: how many devices there are, and of which kind.

Only processes under the virtual NPU's launcher find it. Whoever asks for more gets an AttributeError.
"""

import ctypes
from types import SimpleNamespace

_cann = ctypes.CDLL("libascendcl.so")
_cann.aclrtGetSocName.restype = ctypes.c_char_p


def _get_device_count() -> tuple[int, int]:
    """Devices that this process may see, and CANN's return code."""
    count = ctypes.c_uint32()
    code = _cann.aclrtGetDeviceCount(ctypes.byref(count))
    return count.value, code


def get_soc_name() -> str:
    """As ``Ascend910B1``."""
    return str(_cann.aclrtGetSocName().decode())


rt = SimpleNamespace(get_device_count=_get_device_count)
