# SPDX-License-Identifier: Apache-2.0
"""Programs of this repository, started at its root: demo, matrix, patches. Not part of the package."""
