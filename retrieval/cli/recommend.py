"""What a sweep found: everything as plain data, the command that trains the recommended setting, lines for people."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from retrieval.errors import UserError
from retrieval.wording import plural

from .columns import as_words

if TYPE_CHECKING:
    from retrieval.eval.sweep import Point
    from retrieval.eval.values import PerQuery

    from .held import HeldOut
    from .trials import Record

SHOWN = 12


def mean_of(table: "PerQuery", metric: str) -> float:
    """Raises UserError for a metric that is not measured."""
    if metric not in table.values:
        raise UserError(f"--value {metric}: is not measured here; known are {', '.join(table.values)}")
    return float(table.values[metric].mean())


def result_of(
    points: "list[Point]", record: "Record", before: "PerQuery", held: "HeldOut", count: int, flags: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a sweep says. before: what the encoder scored untrained; count: rows that were trained on."""
    from retrieval.eval.compare import compare

    told = []
    for point in points:
        trials = _trials(record, point)
        metrics = {name: sum(t["metrics"][name] for t in trials) / len(trials) for name in trials[0]["metrics"]}
        compared = None if point.against_best is None else asdict(point.against_best)
        told.append(
            asdict(point)
            | {
                "label": point.label,
                "verdict": point.verdict,
                "against_best": compared,
                "metrics": metrics,
                "ess": trials[0]["last"]["ess"],
            }
            | {"warnings": sorted({note for trial in trials for note in trial["warnings"]})}
        )
    failed = [
        {"loss": name, "seed": seed, "why": t["failed"]} for (name, seed), t in record.done.items() if not t["table"]
    ]
    best = points[0]
    tables = [record.table(best.loss, trial["seed"]) for trial in _trials(record, best)]
    gained = compare([before], [table for table in tables if table], flags["value"], seed=flags["seed"])
    return {
        "data": str(flags["data"]),
        "model": flags["model"],
        "trains": "the whole encoder" if flags["whole"] else "a head",
        "trained_on": count,
        "queries": held.count,
        "left_out": held.left_out,
        "chosen_by": flags["value"],
        "untrained": mean_of(before, flags["value"]),
        "against_untrained": asdict(gained) | {"verdict": gained.verdict()},
        "recommended": {
            "label": best.label,
            "loss": best.loss,
            "method": best.method,
            "setting": dict(best.setting),
            "command": _command(best, held, flags),
        },
        "not_shown_worse": [point.label for point in points[1:] if point.verdict != "worse"],
        "points": told,
        "failed": failed,
        "seconds": round(sum(trial["seconds"] for trial in record.done.values()), 1),
    }


def _trials(record: "Record", point: "Point") -> list[dict[str, Any]]:
    """The runs that a point is the mean of; a sweep that went on may have more on record."""
    made = [trial for (loss, _), trial in record.done.items() if loss == point.loss and trial["table"]]
    return sorted(made, key=lambda trial: int(trial["seed"]))[: point.runs]


def _command(best: "Point", held: "HeldOut", flags: dict[str, Any]) -> str:
    """What trains the recommended setting on everything."""
    words = ["retrieval", "train", "text" if held.is_text else "image"]
    words += ["--data", str(flags["data"]), *as_words(flags), "--model", flags["model"], "--loss", best.method]
    for name, value in best.setting.items():
        words += [f"--{name.replace('_', '-')}", f"{value:.15g}"]
    for name in ("steps", "epochs", "batch_size", "lr"):
        if flags[name] is not None and not (name == "epochs" and flags["steps"]):
            words += [f"--{name.replace('_', '-')}", f"{flags[name]:.15g}"]
    words += [] if flags["whole"] else ["--head"]
    words += ["--seed", str(flags["seed"])] if flags["seed"] else []
    words += ["--detach-weights"] if flags["detach_weights"] else []
    words += [] if flags["label_mask"] is None else [f"--{'' if flags['label_mask'] else 'no-'}label-mask"]
    return shlex.join([*words, "--output", "run"])


def lines_of(result: dict[str, Any]) -> list[str]:
    """For people: the best settings, what is recommended, and what that trains with."""
    from retrieval.eval.compare import told_p

    metric, points = result["chosen_by"], result["points"]
    width = max(len(point["label"]) for point in points[:SHOWN]) + 2
    told = [f"{'':<{width}}{metric:>8}   {'95 % interval':<16}{'runs':>4}   against the best"]
    told.append(f"{'(before training)':<{width}}{result['untrained']:>8.4f}")
    for point in points[:SHOWN]:
        (low, high), against = point["interval"], point["against_best"]
        line = f"{point['label']:<{width}}{point['mean']:>8.4f}   {f'{low:.4f}–{high:.4f}':<16}{point['runs']:>4}   "
        if against is not None:
            low, high = against["interval"]
            line += f"{against['difference']:+.4f} [{low:+.4f}, {high:+.4f}]  {point['verdict']}, p {told_p(against['adjusted'])}"
        told.append(line.rstrip())
    told += [f"and {plural(len(points) - SHOWN, 'setting')} that did less well"] if len(points) > SHOWN else []
    if any(point["runs"] == 1 for point in points):
        told.append("of one run it is not known how another seed would do: interval and p are for it as it is")
    marked = [(point["label"], note) for point in points[1:SHOWN] for note in point["warnings"]]
    told += [f"Warning, {label}: {note}" for label, note in marked]
    told += [f"failed: {each['loss']}: {each['why']}" for each in result["failed"]]
    best = points[0]
    alike = len(result["not_shown_worse"])
    others = "; 1 other is not shown to be worse" if alike == 1 else f"; {alike:,} others are not shown to be worse"
    told += ["", f"recommended: {best['label']}" + (others if alike else "")]
    told += [f"  Warning: {note}" for note in best["warnings"]]
    if result["against_untrained"]["verdict"] != "better":
        told.append(
            "  Warning: it is not shown to be better than the encoder before training; try another range, --lr or --steps"
        )
    told += [
        "",
        "train it on everything, and judge it by a test set that was not used here (--eval-data):",
        f"  {result['recommended']['command']}",
    ]
    return told
