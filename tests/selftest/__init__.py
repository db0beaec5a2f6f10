# SPDX-License-Identifier: Apache-2.0
"""Tests of the command ``selftest``, on virtual NPUs and without devices."""
