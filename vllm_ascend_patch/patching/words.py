# SPDX-License-Identifier: Apache-2.0
"""Enumerations whose members are words; knows none of the words."""

from enum import Enum


class Words(str, Enum):
    """What ``enum.StrEnum`` is from Python 3.11 on: a member equals, prints and serialises as its value."""

    __str__ = str.__str__
