# SPDX-License-Identifier: Apache-2.0
"""The data-parallel step vector: pack, post, wait, agree."""
