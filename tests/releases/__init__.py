# SPDX-License-Identifier: Apache-2.0
"""What must hold for every vLLM release, and for the next one."""
