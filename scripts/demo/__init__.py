# SPDX-License-Identifier: Apache-2.0
"""The demo: a real MoE checkpoint, stock vLLM's server on NPUs, and an oracle that checks its answers."""
