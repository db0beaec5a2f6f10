# SPDX-License-Identifier: Apache-2.0
"""What is known of vLLM's releases, as text: declarations of patches, records of upstream, the guard that compares.

Imports ``patching`` and ``envs``; never torch, vLLM or a seam.
"""
