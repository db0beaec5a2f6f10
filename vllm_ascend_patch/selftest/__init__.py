# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-ascend-patch selftest`` tries on a machine with NPUs. The command runs each part in processes of its own
(``part.py``), so that a crash or a hang of one is a line of the report; nothing that serves imports this."""
