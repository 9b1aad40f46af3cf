"""What commands share: errors as one line, `--json`, `--config`, progress on stderr."""

import errno
import logging
import os
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from retrieval.errors import UserError, first_line, is_disk_full

from .output import emit, is_silent, plural

if TYPE_CHECKING:
    from retrieval.store import Ids, Store

F = TypeVar("F", bound=Callable[..., Any])
ELSEWHERE = (errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG)
MOST = 1_000_000


class Interrupted(click.ClickException):
    """Ctrl-C."""

    exit_code = 130


class Fault(click.ClickException):
    """The user's to act on: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        if not is_silent():
            super().show(file)


class Command(click.Command):
    """A command whose options are shown under the titles of the groups that they came in."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titled: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if (shown := param.get_help_record(ctx)) is not None:
                titled.setdefault(getattr(param, "title", "Options"), []).append(shown)
        for title, rows in titled.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


class Commands(Group):
    """The whole: its commands turn the user's errors, and a full disk, into one line; listed in the order they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:  # click's own has four lines
            command = error.ctx.command_path if error.ctx else ctx.command_path
            raise Fault(f"{' '.join(error.format_message().split())} See `{command} --help`.") from None
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; nothing stands half-written under its final name, and `embed`, `index build`, `sweep` and `train` go on when they are run again"
            ) from None
        except UserError as error:
            raise Fault(" ".join(str(error).split())) from error
        except PermissionError as error:
            raise Fault(f"{error.filename}: permission denied; change its mode, or choose another place") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in ELSEWHERE:
                raise Fault(f"{error.filename}: {(error.strerror or '').lower()}; choose another place") from error
            if is_disk_full(error):
                where = getattr(error, "filename", None) or ctx.params.get("output") or Path.cwd()
                raise Fault(f"{where}: the disk is full; free some space and run the command again") from error
            raise


def together(*options: Callable[[F], F], title: str | None = None) -> Callable[[F], F]:
    """Options as one decorator, shown in this order, under a title of their own."""

    def add(command: F) -> F:
        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(options):
            command = option(command)
        for param in getattr(command, "__click_params__", ())[before:] if title else ():
            if not hasattr(param, "title"):
                param.title = title
        return command

    return add


def refuse_unused(why: str, *flags: str) -> None:
    """Raise UserError where one of these flags was given, by the command line or a configuration file, to a call that has no use for it."""
    context = click.get_current_context()
    for param in context.command.params:
        named = set(flags) & set(param.opts)
        if named and context.get_parameter_source(param.name or "") not in (None, ParameterSource.DEFAULT):
            raise UserError(f"{named.pop()}: {why}; leave it out")


def existing(kind: str) -> click.Path:
    """A path argument that must exist; `kind` is "file", "folder" or "any"."""
    return click.Path(path_type=Path, exists=True, dir_okay=kind != "file", file_okay=kind != "folder")


def _load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Fault(f"{path}: not TOML ({error})") from None
    known = _option_names(ctx.command)
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        if key.replace("_", "-") not in known:
            raise Fault(f"{path}: unknown key {key!r}; this command knows {', '.join(sorted(known))}")
        found, negated = known[key.replace("_", "-")]
        if (found.multiple or found.nargs == -1) and not isinstance(value, list):
            value = [value]
        if isinstance(found.type, click.Path) and not isinstance(value, list):
            value = str(value)
        if isinstance(found.type, click.types.IntParamType) and isinstance(value, bool | float):
            raise Fault(f"{path}: {key}: {value!r} is no whole number")
        try:
            checked = found.type_cast_value(ctx, value)
        except click.BadParameter as error:
            raise Fault(f"{path}: {key}: {error.message}") from None
        defaults[found.name or ""] = not checked if negated else value  # which click casts when it is used
    ctx.default_map = defaults


def _option_names(command: click.Command) -> dict[str, tuple[click.Parameter, bool]]:
    """What a configuration file may say: every option and argument by its name, and whether that name negates it."""
    names: dict[str, tuple[click.Parameter, bool]] = {}
    for parameter in command.params:
        if parameter.name not in ("config", "help"):
            long = [name for name in parameter.opts if name.startswith("--")] or parameter.opts
            names |= {name.lstrip("-").lower(): (parameter, False) for name in long}
            names |= {name.lstrip("-"): (parameter, True) for name in parameter.secondary_opts}
    return names


class Number(click.ParamType[float]):
    """A finite number, above zero if `positive`, and at most a million, beyond which float32 soon overflows."""

    name = "number"

    def __init__(self, positive: bool = False) -> None:
        self.positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not abs(number) <= MOST or (self.positive and number <= 0):
            low = "above 0" if self.positive else f"from −{MOST:,}"
            self.fail(f"{value!r} must be a number {low} and at most {MOST:,}.", param, ctx)
        return number


class Amount(click.ParamType[float]):
    """A number with a unit, such as 2GB or 5ms; in bytes or seconds."""

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name, self.units = name, units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        for unit in sorted(self.units, key=len, reverse=True):
            if text.endswith(unit.lower()):
                try:
                    amount = float(text[: -len(unit)]) * self.units[unit]
                except ValueError:
                    break
                if 0 < amount < float("inf"):
                    return amount
        return self.fail(f"{value!r} is not understood; write a number and {', '.join(self.units)}.", param, ctx)


MEMORY = Amount("memory", {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12})
TIME = Amount("time", {"us": 1e-6, "ms": 1e-3, "s": 1.0})


def named_ids(command: F) -> F:
    """`--id` and `--ids`: rows by their ids."""
    for option in (
        click.option("--ids", "ids_path", type=existing("file"), help="A file of ids, one a line."),
        click.option("--id", "named", multiple=True, help="An id; may be given several times."),
    ):
        command = option(command)
    return command


def read_ids(named: tuple[str, ...], path: Path | None) -> list[str]:
    """The ids of `--id` and `--ids`, each once. Raises UserError where there are none."""
    from retrieval.formats import read_lines

    ids = list(dict.fromkeys([*named, *(read_lines(path) if path else [])]))
    if not ids:
        raise UserError("give --id ID or --ids FILE")
    return ids


def typed_ids(rows: "Store", ids: list[str]) -> "Ids":
    """Ids as the rows have them: strings, or integers. Raises UserError for what is no integer."""
    if rows.manifest["ids"] == "string":
        return ids
    import numpy as np

    numbers = np.zeros(len(ids), np.int64)
    for at, text in enumerate(ids):
        with suppress(ValueError, OverflowError):
            numbers[at] = int(text)
        if str(numbers[at]) != text.strip():  # Python takes 1_0 for 10
            raise UserError(f"{rows.folder}: its ids are integers, {text!r} is none")
    return numbers


def refuse_existing(overwrite: bool, *paths: Path | None) -> None:
    """Raise UserError where a file would be replaced unasked, or has no folder to stand in."""
    from retrieval.artifact import require_folder_of

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


def common(command: F) -> F:
    """`--json`, `--config` and `--seed`, which every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Makes the run reproducible.",
        ),
        click.option(
            "--config",
            type=existing("file"),
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="TOML file of this command's options; flags win.",
        ),
    ):
        command = option(command)
    return command


def writes(command: F) -> F:
    """`--output` and `--overwrite`, for what makes an artifact."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace an earlier result under --output."),
        click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write."),
    ):
        command = option(command)
    return command


def fills_store(command: F) -> F:
    """`--dtype`, `--append` and `--replace`, for what writes rows of a store."""
    for option in (
        click.option("--replace", is_flag=True, help="Likewise, but rows whose ids are there replace the old ones."),
        click.option("--append", "add", is_flag=True, help="Add to the store that --output is; its ids must be new."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
            help="How vectors are stored.  [default: float32, or as the store has them]",
        ),
    ):
        command = option(command)
    return command


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


def checks(command: F) -> F:
    """`--check`, for what reads artifacts."""
    return click.option("--check", is_flag=True, help="Hash every file first, also beyond the 1 GiB that always are.")(
        command
    )


def uses_device(command: F) -> F:
    return click.option("--device", help="cpu, cuda, cuda:1, mps …  [default: a GPU if there is one]")(command)


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
