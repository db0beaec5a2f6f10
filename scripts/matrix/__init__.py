# SPDX-License-Identifier: Apache-2.0
"""Runs the patch set on many vLLM releases in one environment, and says what came of it."""
