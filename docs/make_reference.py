"""Write docs/commands.md from the command line itself: `make format` runs this, a test checks that it was run."""

from pathlib import Path

import click

from retrieval.cli import cli

HEAD = """# Commands

Generated from `--help` by `docs/make_reference.py`. Exit codes: 0 done, 2 the input or the environment is at fault (one line
says what and what to do), 130 Ctrl-C, 1 anything else. Results go to stdout, everything else to stderr. `--config` takes a TOML file whose
keys are the command's options.
"""


def reference() -> str:
    """The whole page."""
    with click.Context(cli, info_name="retrieval", **cli.context_settings) as root:
        return HEAD + "".join(_sections(cli, root))


def _sections(command: click.Command, context: click.Context) -> list[str]:
    context.terminal_width = 100
    formatter = context.make_formatter()
    command.format_help(context, formatter)
    sections = [f"\n## {context.command_path}\n\n```\n{formatter.getvalue().strip()}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.commands[name]
            with click.Context(inner, info_name=name, parent=context) as below:
                sections += _sections(inner, below)
    return sections


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(reference(), encoding="utf-8")
