# SPDX-License-Identifier: Apache-2.0
"""Stock vLLM under the patch set, against transformers on the same weights."""
