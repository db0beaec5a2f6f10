# SPDX-License-Identifier: Apache-2.0
"""Declare, check, apply, revert and report patches of any Python package; knows wrapt, knows nothing of MoE or NPUs."""
