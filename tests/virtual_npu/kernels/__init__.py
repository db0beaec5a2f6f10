# SPDX-License-Identifier: Apache-2.0
"""Tests of the reference kernels: values, limits, shapes, and dispatch and combine across processes."""
