# SPDX-License-Identifier: Apache-2.0
"""Reference kernels of the npu:: operators, strict about the limits that the vendor documents."""
