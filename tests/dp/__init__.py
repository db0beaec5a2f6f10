# SPDX-License-Identifier: Apache-2.0
"""Tests of the data-parallel step sync: what the ranks agree on, that they always do, and what happens if they cannot."""
