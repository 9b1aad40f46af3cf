"""Options that several commands have, and what they mean."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from retrieval.artifact import refuse_unfinished, require_folder_of
from retrieval.errors import UserError, first_line
from retrieval.wording import plural

from .commands import load_config, together
from .output import emit


class _Existing(click.Path):
    """A path that exists; of a folder that is not there yet it says where that is being made."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.dir_okay:
            refuse_unfinished(Path(value))
        return super().convert(value, param, ctx)


def existing(kind: str) -> click.Path:
    """A path argument that must exist; `kind` is "file", "folder" or "any"."""
    return _Existing(path_type=Path, exists=True, dir_okay=kind != "file", file_okay=kind != "folder")


named_ids = together(
    click.option("--id", "named", multiple=True, help="An id; may be given several times."),
    click.option("--ids", "ids_path", type=existing("file"), help="A file of ids, one a line."),
    click.option("--missing-ok", is_flag=True, help="Pass over ids that are not there.  [default: do nothing then]"),
)


def read_ids(named: tuple[str, ...], path: Path | None) -> list[str]:
    """The ids of `--id` and `--ids`, each once; none of an empty file, as a day without removals has it. Raises UserError where neither
    is given."""
    from retrieval.formats import read_lines

    if not named and path is None:
        raise UserError("give --id ID or --ids FILE")
    return list(dict.fromkeys([*named, *(read_lines(path) if path else [])]))


def refuse_existing(overwrite: bool, *paths: Path | None) -> None:
    """Raise UserError where a file would be replaced unasked, or has no folder to stand in."""
    for path in paths:
        if path is None:
            continue
        require_folder_of(path)
        if path.exists() and not overwrite:
            raise UserError(f"{path}: already exists; choose another name, or replace it with --overwrite")


def verify_artifact(folder: Path, kind: str, as_json: bool) -> None:
    """Hash every file of an artifact and say which differ; raises UserError if any does."""
    from retrieval.artifact import damaged, read_statement

    files = read_statement(folder, kind)["files"]
    bad = damaged(folder, files)
    result = {kind: str(folder), "files": len(files), "intact": not bad, "damaged": bad}
    lines = [f"{folder}: {'all ' if len(files) > 1 else ''}{plural(len(files), 'file')} intact"]
    emit(result, as_json, [f"{folder / name}: damaged or missing" for name in bad] or lines)
    if bad:
        raise UserError(
            f"{folder}: {len(bad):,} of {plural(len(files), 'file')} damaged; bring them back, or make it again"
        )


common = together(  # what every command has
    click.option(
        "--config",
        type=existing("file"),
        is_eager=True,
        expose_value=False,
        callback=load_config,
        help="TOML file of this command's options; flags win.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Makes the run reproducible."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
)
writes = together(  # for what makes an artifact
    click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write."),
    click.option("--overwrite", is_flag=True, help="Replace an earlier result under --output."),
)
fills_store = together(  # for what writes rows of a store
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
        help="How vectors are stored.  [default: float32, or as the store has them]",
    ),
    click.option("--append", "add", is_flag=True, help="Add to the store that --output is; its ids must be new."),
    click.option("--replace", is_flag=True, help="Likewise, but rows whose ids are there replace the old ones."),
)


def require_store(output: Path) -> None:
    """Raise UserError where --append or --replace name no store."""
    if not output.exists():
        raise UserError(f"--output {output}: no such store to change; leave out --append or --replace to make it")


def as_stored(dtype: str | None, output: Path, changes: bool) -> str:
    """The dtype asked for, else that of the store to be changed, else float32."""
    if dtype is not None or not changes:
        return dtype or "float32"
    from retrieval.store import open_store

    with open_store(output) as store:
        return store.dtype


def refuse_two_ways(add: bool, replace: bool, overwrite: bool) -> None:
    """Raise UserError where a store is to be changed in more than one way."""
    if add + replace + overwrite > 1:
        raise UserError("give one of --append, --replace and --overwrite")


checks = click.option("--check", is_flag=True, help="Hash every file first, also beyond the 1 GiB that always are.")
uses_device = click.option("--device", help="cpu, cuda, cuda:1, mps …  [default: a GPU if there is one]")


def pick_device(asked: str | None) -> str:
    """The device to run on. Raises UserError for one that is not there; never falls back."""
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {asked}: not available here ({first_line(error)}); leave it out or use cpu"
        ) from None
    return asked


def refuse_missing(*paths: Path, give: str = "data to train on") -> None:
    """Raise UserError, before anything is imported that takes seconds, for what is neither there nor the name of a data set."""
    from retrieval.data.tables import is_hub_name

    for path in paths:
        refuse_unfinished(path)
        if not path.exists() and not is_hub_name(path):
            raise UserError(f"{path}: no such file or folder; give {give}")


def quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of our output; called by commands, never on import.

    By the environment, for those that are still to be imported, here or in processes that we start: importing them takes
    seconds, in which a mistake should long be said. What is imported already has read it, and is told.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers goes by it too
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if hub := sys.modules.get("huggingface_hub.utils"):
        hub.disable_progress_bars()
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    for name in ("sentence_transformers", "accelerate", "torch.utils._pytree", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
