# SPDX-License-Identifier: Apache-2.0
"""The table of models: tiny models of MoE families, served on virtual NPUs and held against transformers."""
