"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

import os
import sys

import click

from retrieval import __version__

from . import (  # noqa: F401 - their commands join groups
    compare,
    eval_pairs,
    index_changes,
    index_files,
    recall,
    relevance,
    store_files,
    train_image,
    train_pairs,
    train_text,
)
from .commands import Commands
from .demo import demo
from .doctor import doctor
from .embed import embed
from .evaluate import evaluate
from .index import index
from .mine import mine
from .report import report
from .search import search
from .serve import serve
from .stopping import stop_when_told
from .store import store
from .sweep import sweep
from .train import train


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="retrieval")
def cli() -> None:
    """Fine-tune encoders with hardness-controlled contrastive loss, index them with FAISS, measure how classes cluster.

    \b
    Start with:  retrieval demo
    """


for command in (train, mine, sweep, embed, store, index, search, serve, evaluate, report, doctor, demo):
    cli.add_command(command)


def main() -> None:
    """The console script. Exit codes: 0 done, 2 the user's input or environment, 130 Ctrl-C, 1 anything else."""
    stop_when_told()
    try:
        os.getcwd()  # or libraries fail, each in a way of its own
    except OSError:
        click.echo("Error: the folder that you are in is gone; go to another", err=True)
        sys.exit(2)
    cli(prog_name="retrieval")
