"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

import signal

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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: schedulers send it
    cli(prog_name="retrieval")
