# SPDX-License-Identifier: Apache-2.0
"""Torch in place of upstream's Triton kernels. Parameters have the upstream kernels' names; no vLLM here."""
