# SPDX-License-Identifier: Apache-2.0
"""The patch set's logic: torch and torch_npu only, never vLLM."""
