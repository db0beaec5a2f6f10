# SPDX-License-Identifier: Apache-2.0
"""Every order of the life-cycle events, and what each must lead to. Pure data and a model of a few lines; runs
nothing."""

import itertools

EVENTS = ("import target", "arm", "arm again", "revert", "plugin load", "spawn")


def orders() -> list[tuple[str, ...]]:
    """All of them."""
    return list(itertools.permutations(EVENTS))


def expected(order: tuple[str, ...]) -> list[str]:
    """What is observed after each event: "absent" before the target is imported, then "stock" or "patched".

    For a spawn it is what the child sees, which imports the target after its own plugin load. The switch is in the
    environment from the first arming to the revert; a plugin load without it does nothing.
    """
    armed = loaded = False
    observations = []
    for event in order:
        if event in ("arm", "arm again"):
            armed = True
        elif event == "revert":
            armed = False
        elif event == "import target":
            loaded = True
        if event == "spawn":
            observations.append("patched" if armed else "stock")
        else:
            observations.append("absent" if not loaded else "patched" if armed else "stock")
    return observations
