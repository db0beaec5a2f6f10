# SPDX-License-Identifier: Apache-2.0
"""The thin device port of vLLM: platform, worker, model runner, attention backend, communicator.

What lives here adapts upstream's GPU classes to ``torch.npu`` so that patches on those classes take effect. No MoE logic and
no data-parallel logic lives here, and no body of upstream code.
"""
