# SPDX-License-Identifier: Apache-2.0
"""Integer arithmetic that several files of the core need. Pure Python: the ``plan`` command runs it without torch."""


def ceil_div(value: int, divisor: int) -> int:
    """``value / divisor`` rounded up."""
    return -(-value // divisor)


def even_parts(total: int, parts: int) -> tuple[int, ...]:
    """``total`` in so many parts that differ by at most 1, the larger first."""
    base, larger = divmod(total, parts)
    return tuple(base + (part < larger) for part in range(parts))
