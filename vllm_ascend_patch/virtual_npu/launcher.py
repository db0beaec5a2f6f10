# SPDX-License-Identifier: Apache-2.0
"""The command ``virtual-npu``: build if need be, write the virtual machine into the environment, become the command.

``import torch`` imports torch_npu, which links CANN: the library path must be right before Python starts. Hence a launcher
that execs. Every process that the command spawns inherits the machine with the environment.
"""

import os
import shlex
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import get_args

import click

from . import builder, extension, order, profile

_SITE = Path(__file__).parent / "site"


def _prepend(environment: MutableMapping[str, str], variable: str, path: Path) -> None:
    rest = [part for part in environment.get(variable, "").split(os.pathsep) if part and part != str(path)]
    environment[variable] = os.pathsep.join([str(path), *rest])


def prepare(environment: MutableMapping[str, str], machine: profile.Profile, runtime: Path) -> None:
    """Make ``environment`` one in which a new process has the virtual ``machine``, from the build in ``runtime``."""
    machine.export(environment)
    environment[extension.RUNTIME_VARIABLE] = str(runtime)
    _prepend(environment, "LD_LIBRARY_PATH", runtime / "lib")
    _prepend(environment, "PYTHONPATH", _SITE)
    # A queue in front of a device that works at once is only another thread; who wants it can still ask for it.
    environment.setdefault("TASK_QUEUE_ENABLE", "0")
    # Not those of a real CANN that may be installed as well: torch_npu would mix the two.
    environment["ASCEND_HOME_PATH"] = str(runtime / "cann")
    environment["ASCEND_OPP_PATH"] = str(runtime / "cann" / "opp")


def _fail(message: str, code: int = 1) -> int:
    print(f"virtual-npu: {message}", file=sys.stderr)
    return code


_OPTIONS = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


@click.command("virtual-npu", context_settings=_OPTIONS)
@click.option("--devices", type=str, help="Number of virtual NPUs, 1 to 64.  [default: 2]")
@click.option("--soc", type=click.Choice(list(profile.SOC_NAMES)), help="SoC generation.  [default: A2]")
@click.option("--memory", type=str, help="Memory of each NPU, like 8GiB or 512MiB.  [default: 8GiB]")
@click.option(
    "--cann", type=click.Choice(get_args(profile.Cann)), help="CANN whose limits of attention hold.  [default: 9.1]"
)
@click.option(
    "--check-order", is_flag=True, help="Find work that is not ordered between streams, and copies nobody waited for."
)
@click.option("--order-stacks", is_flag=True, help="Check order, and show whole Python stacks.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def virtual_npu(
    devices: str | None,
    soc: profile.SoC | None,
    memory: str | None,
    cann: profile.Cann | None,
    check_order: bool,
    order_stacks: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND, and every process that it spawns, on a machine with simulated Ascend NPUs under the real torch_npu.

    `virtual-npu build` compiles the simulated runtime and runs nothing.
    """
    try:
        inherited = profile.current()
        machine = profile.Profile(
            devices=inherited.devices if devices is None else profile.parse_devices(devices),
            soc=inherited.soc if soc is None else soc,
            memory_bytes=inherited.memory_bytes if memory is None else profile.parse_memory(memory),
            cann=inherited.cann if cann is None else cann,
        )
        runtime = builder.build(verbose=True)
    except ValueError as error:
        return _fail(str(error), 2)
    except builder.BuildError as error:
        return _fail(str(error))
    if command == ("build",):
        print(runtime)
        return 0
    program = shutil.which(command[0])
    if program is None:
        return _fail(f"there is no command {command[0]!r}: {shlex.join(command)}")
    environment = dict(os.environ)
    prepare(environment, machine, runtime)
    if check_order or order_stacks:
        order.export(environment, stacks=order_stacks)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(command), environment)


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments. Returns, with the exit code, only on an error, a build or ``--help``."""
    try:
        result = virtual_npu.main(args=list(argv), prog_name="vllm-ascend-patch virtual-npu", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0
