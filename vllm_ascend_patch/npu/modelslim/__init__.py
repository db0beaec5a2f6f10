# SPDX-License-Identifier: Apache-2.0
"""ModelSlim checkpoints behind vLLM's hooks for quantisation: recognised, described, loaded into linear layers."""
