# SPDX-License-Identifier: Apache-2.0
"""The driver of the life-cycle harness for the installed vLLM, on simulated NPUs.

The driver loads everything that the target module needs, lets vLLM choose our platform, reverts the patch set and drops
the target module again; so each order starts from a process in which vLLM is there, nothing is armed and the target is
not imported, and "import target" executes the real module. The target is the data-parallel all-reduce, a module-level
function.

Usage: ``python -m tests.patching.life_cycle_real SHARE SHARES``; with ``child`` it is the spawned interpreter.
"""

import importlib
import os
import subprocess
import sys

from .life_cycle import drive

MODULE, NAME = "vllm.v1.worker.dp_utils", "_run_ar"


def plugins() -> None:
    """Load the general plugins, as vLLM does in a new process."""
    import vllm.plugins

    vllm.plugins.plugins_loaded = False
    vllm.plugins.load_general_plugins()


class Real:
    """The events, for vLLM and the package itself."""

    interpreter_every = 200  # each imports vLLM from scratch

    def perform(self, event: str) -> None:
        """Do one event other than a spawn."""
        import vllm_ascend_patch

        if event == "import target":
            importlib.import_module(MODULE)
        elif event == "revert":
            vllm_ascend_patch.revert()
        elif event == "plugin load":
            plugins()
        else:
            vllm_ascend_patch.arm()

    def seen(self) -> str:
        """What the target looks like in this process."""
        module = sys.modules.get(MODULE)
        if module is None:
            return "absent"
        return "patched" if hasattr(getattr(module, NAME), "__wrapped__") else "stock"

    def child(self) -> str:
        """Plugins first, then the module, as vLLM does."""
        plugins()
        importlib.import_module(MODULE)
        return self.seen()

    def interpreter(self) -> str:
        """The same in a new interpreter, which inherits the environment."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.patching.life_cycle_real", "child"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:]


def prepare() -> None:
    """Bring the driver into the state from which every order starts."""
    os.environ["VLLM_ASCEND_PATCH"] = "1"
    from vllm.platforms import current_platform

    assert type(current_platform).__module__.startswith("vllm_ascend_patch."), current_platform
    importlib.import_module(MODULE)
    plugins()
    import vllm_ascend_patch

    vllm_ascend_patch.revert()
    os.environ.pop("VLLM_ASCEND_PATCH", None)
    parent, _, name = MODULE.rpartition(".")
    del sys.modules[MODULE]
    delattr(sys.modules[parent], name)


if __name__ == "__main__":
    if sys.argv[1] == "child":
        print(Real().child())
    else:
        prepare()
        drive(Real(), int(sys.argv[1]), int(sys.argv[2]))
