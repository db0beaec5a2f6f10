# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's seams are, per range of releases, and the adapters from them to core."""
