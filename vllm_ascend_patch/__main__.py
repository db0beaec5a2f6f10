# SPDX-License-Identifier: Apache-2.0
"""The command line. Each command's work lives in its own module, imported when the command runs: starting is fast and
torch-free."""

from importlib import import_module

import click


class _Delegated(click.Command):
    """A command whose arguments, ``--`` and ``--help`` included, go untouched to ``module:function(argv) -> int |
    None``."""

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary, short_help=summary, add_help_option=False)
        self._target = target

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> None:
        module, _, function = self._target.partition(":")
        status = getattr(import_module(module, __package__), function)(ctx.args)
        raise SystemExit(status or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Serve Mixture-of-Experts models with stock vLLM on Ascend NPUs."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--all", "all_patches", is_flag=True, help="List the patches of other vLLM releases, too.")
def doctor(as_json: bool, all_patches: bool) -> None:
    """Say whether a serve would work here, and why not. Exit code 0 only if it would."""
    from vllm_ascend_patch.commands.doctor import run

    raise SystemExit(run(as_json=as_json, all_patches=all_patches))


for _name, _target, _summary in (
    ("upstream", ".commands.upstream:command", "Record a vLLM release, or compare one with its record."),
    ("docs", ".commands.documentation:command", "Rewrite the generated tables of Markdown files."),
    ("virtual-npu", ".virtual_npu.launcher:main", "Run a command on simulated NPUs."),
    ("plan", ".commands.plan:main", "Say which MoE communication method a deployment will use, and why."),
    ("trace", ".commands.trace:main", "Read the traces that the ranks wrote."),
):
    cli.add_command(_Delegated(_name, _target, _summary))


def main() -> None:
    """The console script. The package does not arm itself in its own command line; if it is armed all the same, that
    ends here."""
    import vllm_ascend_patch

    vllm_ascend_patch.disarm()
    cli(prog_name="vllm-ascend-patch")


if __name__ == "__main__":
    main()
