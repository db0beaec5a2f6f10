# SPDX-License-Identifier: Apache-2.0
"""Seam 3: the MoE layers of a forward run with the method that the step agreed on."""
