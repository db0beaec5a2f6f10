# SPDX-License-Identifier: Apache-2.0
"""Tests of the patch set; they run under the virtual NPU launcher (``scripts/test.sh``)."""
