# SPDX-License-Identifier: Apache-2.0
"""Every environment variable of the package: name, default, meaning, parser. The README table is made from this file.

Read a value as an attribute, ``envs.VLLM_ASCEND_PATCH_DP_SYNC``: it is parsed from the environment at each access. A
value that cannot be parsed raises ``EnvError``, which lists the valid ones. Imports nothing of vLLM or torch.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.core.moe.comm import METHODS

PREFIX = "VLLM_ASCEND_PATCH"


class EnvError(ValueError):
    """An environment variable of this package has a value, or a name, that is not one of the valid ones."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable. ``values`` says in words what is valid; ``when`` says when it is read."""

    name: str
    default: str
    values: str
    meaning: str
    when: str
    parse: Callable[[str], Any]

    def read(self, environ: Mapping[str, str] | None = None) -> Any:
        """The parsed value, from the default when unset or empty. Raises ``EnvError``."""
        text = (os.environ if environ is None else environ).get(self.name, "").strip() or self.default
        try:
            return self.parse(text)
        except ValueError:
            raise EnvError(
                f"{self.name}={text!r} is not valid: use {self.values} (default: {self.default or 'empty'})"
            ) from None


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


def _flag(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(text)


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _links(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    inside, between = (float(part) for part in text.split(","))
    if not (0 < inside < float("inf") and 0 < between < float("inf")):
        raise ValueError(text)
    return inside, between


def _choices(name: str, default: str, choices: tuple[str, ...], meaning: str, when: str) -> Variable:
    values = "one of " + ", ".join(choices)
    return Variable(name=name, default=default, values=values, meaning=meaning, when=when, parse=_choice(*choices))


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable(
            name="VLLM_ASCEND_PATCH",
            default="0",
            values="1 or 0 (also true/false, yes/no, on/off)",
            meaning=(
                "Turns the patch set on in a deployment whose code does not import it. Importing the package sets it, so "
                "that the processes that vLLM spawns are patched too. An explicit 0 keeps everything off, the import "
                "included."
            ),
            when="when vLLM loads its plugins, and at import of the package",
            parse=_flag,
        ),
        Variable(
            name="VLLM_ASCEND_PATCH_ENABLE",
            default="",
            values="a comma list of patch ids, where * stands for any characters",
            meaning="Patches to turn on that are off by default, or that a * in the disable list turned off.",
            when="when the patch set is armed",
            parse=_names,
        ),
        Variable(
            name="VLLM_ASCEND_PATCH_DISABLE",
            default="",
            values="a comma list of patch ids, where * stands for any characters",
            meaning="Patches to leave out. An id named here and in the enable list is an error.",
            when="when the patch set is armed",
            parse=_names,
        ),
        _choices(
            "VLLM_ASCEND_PATCH_STRICT",
            "error",
            ("error", "warn", "off"),
            "What to do when the installed vLLM is not what a patch was recorded against: refuse to start, warn and patch "
            "all the same, or patch without comparing.",
            "when a patch is applied",
        ),
        _choices(
            "VLLM_ASCEND_PATCH_LOG",
            "info",
            ("debug", "info", "warning", "error"),
            "The least severe message of this package that is logged.",
            "at import of the package",
        ),
        _choices(
            "VLLM_ASCEND_PATCH_DP_SYNC",
            "auto",
            ("auto", "device", "cpu", "shared"),
            "How the data-parallel metadata travels: an all-reduce on the NPU group or on the CPU (gloo) group, memory "
            "that all ranks of one host share, or the fastest of these as measured at start-up. It must be the same on "
            "every rank.",
            "when the model runner starts",
        ),
        Variable(
            name="VLLM_ASCEND_PATCH_DP_TIMEOUT",
            default="60",
            values="a number of seconds above 0",
            meaning="How long a rank without heartbeat, or one that hangs inside a step, is waited for before the others "
            "stop with an error. A rank that is alive and busy outside a step (reloading weights, profiling, a debugger) "
            "is waited for without limit, with a line in the log per this time; one that is idle while others "
            "wait, five times this.",
            when="when the model runner starts",
            parse=_seconds,
        ),
        Variable(
            name="VLLM_ASCEND_PATCH_TRACE",
            default="",
            values="a path; {rank} and {pid} are filled in",
            meaning="File of each process's step trace, in the Chrome/Perfetto format: what was posted, agreed and chosen. "
            "Empty: none.",
            when="when the model runner starts",
            parse=str,
        ),
        _choices(
            "VLLM_ASCEND_PATCH_MOE_COMM",
            "auto",
            ("auto", *METHODS),
            "The MoE communication method: chosen per step, or forced. A forced method that breaks a limit is refused at "
            "start-up.",
            "when the model runner starts",
        ),
        Variable(
            name="VLLM_ASCEND_PATCH_LINKS",
            default="",
            values="two numbers above 0 with a comma between them, like 196,25",
            meaning="GB/s that one NPU can send to the others of its host, and to other hosts: what the choice of the MoE "
            "communication method reckons with. Empty: the published figures of the SoC. It must be the same on every rank.",
            when="when the model runner starts",
            parse=_links,
        ),
    )
}

if TYPE_CHECKING:
    VLLM_ASCEND_PATCH: bool
    VLLM_ASCEND_PATCH_ENABLE: tuple[str, ...]
    VLLM_ASCEND_PATCH_DISABLE: tuple[str, ...]
    VLLM_ASCEND_PATCH_STRICT: str
    VLLM_ASCEND_PATCH_LOG: str
    VLLM_ASCEND_PATCH_DP_SYNC: str
    VLLM_ASCEND_PATCH_DP_TIMEOUT: float
    VLLM_ASCEND_PATCH_TRACE: str
    VLLM_ASCEND_PATCH_MOE_COMM: str
    VLLM_ASCEND_PATCH_LINKS: tuple[float, float] | None


def __getattr__(name: str) -> Any:
    if name in VARIABLES:
        return VARIABLES[name].read()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *VARIABLES]


def is_set(name: str) -> bool:
    """Whether the user gave the variable a value (even the default one)."""
    return bool(os.environ.get(name, "").strip())


def switched_off() -> bool:
    """Whether the user said ``VLLM_ASCEND_PATCH=0`` in so many words. A value that is no flag is not a 0; it is an
    error elsewhere."""
    return os.environ.get(PREFIX, "").strip().lower() in _FALSE - {""}


def validate(environ: Mapping[str, str] | None = None) -> None:
    """Parse every variable and look for misspelt names; one ``EnvError`` lists all that is wrong."""
    environ = os.environ if environ is None else environ
    wrong: list[str] = []
    for variable in VARIABLES.values():
        try:
            variable.read(environ)
        except EnvError as error:
            wrong.append(str(error))
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else "the variables are: " + ", ".join(VARIABLES)
            wrong.append(f"{name} is not a variable of vllm_ascend_patch; {hint}")
    if wrong:
        raise EnvError("\n".join(wrong))
