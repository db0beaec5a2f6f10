# SPDX-License-Identifier: Apache-2.0
"""Seams of the device port: what upstream's GPU classes need before they run on NPUs at all."""
