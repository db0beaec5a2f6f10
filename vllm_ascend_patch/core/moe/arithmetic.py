# SPDX-License-Identifier: Apache-2.0
"""Integer arithmetic that several files of the core need. Pure Python: the ``plan`` command runs it without torch."""


def ceil_div(value: int, divisor: int) -> int:
    """``value / divisor`` rounded up."""
    return -(-value // divisor)
