# SPDX-License-Identifier: Apache-2.0
"""Importing this package arms the patch set."""
