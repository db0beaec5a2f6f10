# SPDX-License-Identifier: Apache-2.0
"""The attention backend: paged causal attention on torch_npu's fused operator."""
