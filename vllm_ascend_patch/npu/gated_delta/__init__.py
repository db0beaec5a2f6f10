# SPDX-License-Identifier: Apache-2.0
"""Layers of gated DeltaNet (Qwen3-Next, Qwen3.5): vLLM's class with this port's computation, and a backend for its states.

Nothing is imported here: the classes derive from vLLM's, which older releases do not have.
"""
