# SPDX-License-Identifier: Apache-2.0
"""Seams 1 and 2: input preparation, and the data-parallel metadata of a step."""
