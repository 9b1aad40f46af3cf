"""What commands say: lines and bars for people on stderr, results on stdout."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import click

from retrieval.errors import UserError
from retrieval.wording import plural

Advance = Callable[..., None]
SECONDS_A_LINE = 10
NAMED = 10  # pictures that a warning names
_silent = False


def told_size(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e3:,.0f} KB" if size < 1e6 else f"{size / 1e6:,.0f} MB"


def told_addition(before: int, after: int, given: int, replace: bool, again: bool) -> str:
    """What an addition of so many rows did, by how many there were before and after. again: it was made already."""
    if again:
        return "has these rows already, nothing was done"
    return f"{plural(after - before, 'row')} added" + (f", {given - after + before:,} replaced" if replace else "")


def tell_skipped(pictures: Sequence[object]) -> None:
    """Which pictures --skip-bad left out, if any."""
    if pictures:
        more = f" and {len(pictures) - NAMED:,} more" if len(pictures) > NAMED else ""
        was = "was" if len(pictures) == 1 else "were"
        named = ", ".join(map(str, pictures[:NAMED]))
        say(f"Warning: {plural(len(pictures), 'image')} cannot be read and {was} left out: {named}{more}")


def silence(on: bool) -> None:
    """Whether this process keeps its lines, bars and results to itself: one of several that do the same work."""
    global _silent
    _silent = on


def is_silent() -> bool:
    return _silent


def say(line: str) -> None:
    """A line for people, on stderr."""
    if not _silent:
        click.echo(line, err=True)


def emit(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """The result on stdout: one JSON object, or lines for people."""
    if _silent:
        return
    told = as_line(result) if as_json else "\n".join(lines)
    try:
        click.echo(told.encode(errors="backslashreplace").decode())  # file names need not be UTF-8
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except OSError as error:
        raise UserError(f"stdout: cannot be written ({error.strerror}); what was asked for is done") from None


def as_line(result: dict[str, Any]) -> str:
    """JSON on one line, with null for NaN and infinity, which it does not know."""
    return json.dumps(_finite(result), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar on stderr, or where that is no terminal a line now and then; yields advance(steps, note="…"). done: steps that need not be
    done again, which say nothing of how fast the others are."""
    if _silent or not sys.stderr.isatty():
        yield _lines(what, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance


def _lines(what: str, total: int, done: int) -> Advance:
    """Progress for a log: a line every ten seconds, with the time that is left at this rate."""
    last = time.monotonic()
    first: tuple[float, int] | None = None  # when the first steps were done, and how many: the rate counts from there

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last, first
        done += steps
        now = time.monotonic()
        first = first or (now, done)
        if now - last > SECONDS_A_LINE:
            last, since = now, done - first[1]
            rate = since / (now - first[0]) if since else 0
            left = f", {rate:,.4g}/s, {(total - done) / rate:.0f} s left" if rate else ""
            say(f"{what} {done:,}/{total:,}{left}  {note}".rstrip())

    return advance
