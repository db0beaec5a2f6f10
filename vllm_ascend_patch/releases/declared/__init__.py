# SPDX-License-Identifier: Apache-2.0
"""The declarations of the patches, a module per seam. Each has ``PATCHES: tuple[Patch, ...]`` and imports nothing else."""
