# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (MLA), absorbed in decoding, on upstream's scaffolding and torch_npu's operators."""
