# SPDX-License-Identifier: Apache-2.0
"""Tests of the patch engine, its records, its plugin and its command line."""
