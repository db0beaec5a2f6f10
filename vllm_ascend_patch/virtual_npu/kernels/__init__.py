# SPDX-License-Identifier: Apache-2.0
"""Reference kernels of the npu:: operators, strict about the limits that the vendor documents.

Every kernel is a function on CPU tensors with the operator's arguments, in the order and under the names of its schema;
arguments before the ``*`` are passed by position. It knows no device and no dispatcher: registry.py brings it there.
Importing this package registers nothing.
"""
