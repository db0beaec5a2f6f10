# SPDX-License-Identifier: Apache-2.0
"""The thin device port of vLLM: platform, worker, attention backend, communicator."""
