# SPDX-License-Identifier: Apache-2.0
"""The driver of the life-cycle harness for the small upstream package.

Usage: ``python -m tests.patching.life_cycle_small SHARE SHARES``, with the package ``small`` on the path; with ``child``
instead it is the spawned interpreter.
"""

import subprocess
import sys

import wrapt  # noqa: F401  # its import is the slowest part, and no part of what is tested

from . import product
from .life_cycle import drive


def load() -> None:
    """Import the target and the module that copies from it."""
    import small.copies
    import small.target  # noqa: F401


class Small:
    """The events, for the small package."""

    interpreter_every = 72

    def perform(self, event: str) -> None:
        """Do one event other than a spawn."""
        {
            "import target": load,
            "arm": product.arm,
            "arm again": product.arm,
            "revert": product.revert,
            "plugin load": product.plugin,
        }[event]()

    def seen(self) -> str:
        """What the target looks like in this process."""
        return product.seen() if "small.target" in sys.modules else "absent"

    def child(self) -> str:
        """Plugins first, then the modules, as vLLM does."""
        product.plugin()
        load()
        return product.seen()

    def interpreter(self) -> str:
        """The same in a new interpreter, which inherits the environment."""
        command = [sys.executable, "-m", "tests.patching.life_cycle_small", "child"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


if __name__ == "__main__":
    if sys.argv[1] == "child":
        print(Small().child())
    else:
        drive(Small(), int(sys.argv[1]), int(sys.argv[2]))
