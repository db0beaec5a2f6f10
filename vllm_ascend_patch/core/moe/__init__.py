# SPDX-License-Identifier: Apache-2.0
"""MoE communication methods, their selection and limits, and the expert MLP."""
