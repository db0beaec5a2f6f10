# SPDX-License-Identifier: Apache-2.0
"""Lets ``import torch`` succeed where neither CANN nor the virtual NPU is present. No fixtures."""

import os
import sys

if "torch" not in sys.modules and "VIRTUAL_NPU_DEVICES" not in os.environ:
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
