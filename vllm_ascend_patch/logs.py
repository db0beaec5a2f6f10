# SPDX-License-Identifier: Apache-2.0
"""The package's logger: its own handler and level, so that its messages are seen whatever vLLM or the application
configures."""

import logging
import sys

logger = logging.getLogger(__package__)

_FORMAT = "%(levelname)s %(asctime)s [vllm_ascend_patch pid=%(process)d] %(message)s"


def configure(level: str) -> None:
    """Log ``vllm_ascend_patch`` and everything below it to stderr from ``level`` on. Idempotent; an application's
    handlers win."""
    logger.setLevel(level.upper())
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, "%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
