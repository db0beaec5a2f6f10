# SPDX-License-Identifier: Apache-2.0
"""A simulated CANN runtime under the unmodified torch_npu wheel; relative imports only, imported by nobody else."""
