# SPDX-License-Identifier: Apache-2.0
"""The command line. Each command's work lives in its own module, imported when the command runs: starting is fast and
torch-free."""

from importlib import import_module

import click


class _Delegated(click.Command):
    """A command whose arguments, ``--`` and ``--help`` included, go untouched to ``command(argv) -> int`` of its module."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary, short_help=summary, add_help_option=False)
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> None:
        raise SystemExit(import_module(self.module, __package__).command(ctx.args))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Serve Mixture-of-Experts models with stock vLLM on Ascend NPUs."""


for _name, _module, _summary in (
    ("doctor", ".commands.doctor", "Say whether a serve would work here, and why not."),
    ("selftest", ".commands.selftest", "Try on this machine's NPUs what the package stands on."),
    ("plan", ".commands.plan", "Say which MoE communication method a deployment will use, and why."),
    ("trace", ".commands.trace", "Read the traces that the ranks wrote."),
    ("upstream", ".commands.upstream", "Record a vLLM release, or compare one with its record."),
    ("docs", ".commands.documentation", "Rewrite the generated tables of Markdown files."),
    ("virtual-npu", ".virtual_npu.launcher", "Run a command on simulated NPUs."),
):
    cli.add_command(_Delegated(_name, _module, _summary))


def main() -> None:
    """The console script. The package does not arm itself in its own command line; if it is armed all the same, that
    ends here."""
    import vllm_ascend_patch

    vllm_ascend_patch.disarm()
    cli(prog_name="vllm-ascend-patch")


if __name__ == "__main__":
    main()
