"""What commands are made of: options in groups, errors as one line, a configuration file."""

import errno
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from retrieval.errors import UserError, is_disk_full, is_file_too_large, is_out_of_memory

from .output import is_silent
from .processes import is_first

F = TypeVar("F", bound=Callable[..., Any])
ELSEWHERE = "choose another place"
REMEDIES = {
    **dict.fromkeys((errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), ELSEWHERE),
    errno.ENAMETOOLONG: "choose a shorter name; one of some more letters is written first",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network's file system, and run the command again",
}


class Interrupted(click.ClickException):
    """Ctrl-C, which of several processes the first one tells."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        if is_first():
            super().show(file)


class Fault(click.ClickException):
    """The user's to act on: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        if not is_silent():
            super().show(file)


class Command(click.Command):
    """A command whose options are shown under the titles of the groups that they came in."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta["output"] = ctx.params.get("output")  # for whoever tells that the disk is full
        return super().invoke(ctx)

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
                "interrupted; nothing stands half-written under its final name, and `embed`, `index build`, `mine`, `sweep` and `train` go on when they are run again"
            ) from None
        except UserError as error:
            raise Fault(" ".join(str(error).split())) from error
        except PermissionError as error:
            raise Fault(f"{error.filename}: permission denied; change its mode, or choose another place") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                named = f"{error.filename}: " if error.filename is not None else ""
                raise Fault(f"{named}{(error.strerror or '').lower()}; {REMEDIES[error.errno]}") from error
            if is_file_too_large(error):
                raise Fault(
                    f"{_where(error, ctx)}: file too large; raise the limit (ulimit -f), or choose a file system for larger files"
                ) from error
            if is_disk_full(error):
                raise Fault(
                    f"{_where(error, ctx)}: the disk is full; free some space and run the command again"
                ) from error
            if is_out_of_memory(error):
                raise Fault(
                    "not enough memory; free some, raise what this process may have (ulimit -v, its container), or ask for less"
                ) from error
            raise


def _where(error: Exception, ctx: click.Context) -> Any:
    """What could not be written, as far as that is known."""
    return getattr(error, "filename", None) or ctx.meta.get("output") or Path.cwd()


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


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
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
            near = get_close_matches(key.replace("_", "-").lower(), known, 1)
            keys = f"keys are the options that `{ctx.command_path} --help` lists, without their dashes"
            raise Fault(f"{path}: unknown key {key!r}; {f'did you mean {near[0]}?' if near else keys}")
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
