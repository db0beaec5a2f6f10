# SPDX-License-Identifier: Apache-2.0
"""Measurements. Each is a program of its own: ``python benchmarks/NAME.py``, or ``nox -s bench -- NAME``."""
