"""A run on disk: the encoder itself, and under `run/` how it came to be.

RUN/modules.json, *.safetensors, …   opens with plain SentenceTransformer(RUN)
RUN/README.md                        the model card
RUN/run/config.json, environment.json, curve.csv, metrics.json, plots
RUN/manifest.json                    written last, with the versions of everything
"""

import csv
import json
from pathlib import Path
from typing import Any

from retrieval.artifact import RUN_KIND, Manifest, creating, environment, now, read_manifest
from retrieval.encoder import Encoder, fingerprint

from .curve import Curve


def save_run(
    output: Path | str,
    encoder: Encoder,
    curve: Curve,
    config: dict[str, Any],
    metrics: dict[str, Any] | None,
    *,
    overwrite: bool = False,
) -> str:
    """Make a run of its own; see `write_run`."""
    with creating(Path(output), RUN_KIND, overwrite=overwrite) as (folder, manifest):
        return write_run(folder, manifest, encoder, curve, config, metrics)


def write_run(
    folder: Path,
    manifest: Manifest,
    encoder: Encoder,
    curve: Curve,
    config: dict[str, Any],
    metrics: dict[str, Any] | None,
    pictures: dict[str, bytes] | None = None,
) -> str:
    """Fill a run's folder; returns the fingerprint of its encoder.

    metrics: by the name of what was judged, {"queries": …, "metrics": {metric: {"before", "after", "difference", "interval", …}}}.
    pictures: plots by their file names.
    """
    encoder.model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").write_text(_card(encoder, curve, config, metrics), "utf-8")
    details = folder / "run"
    details.mkdir(exist_ok=True)
    (details / "config.json").write_text(json.dumps(config, indent=2))
    (details / "environment.json").write_text(json.dumps(environment(), indent=2))
    if metrics:
        (details / "metrics.json").write_text(json.dumps(metrics, indent=2))
    with open(details / "curve.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
    for name, content in (pictures or {}).items():
        (details / name).write_bytes(content)
    mark = fingerprint(encoder.model)
    manifest |= {
        "created": now(),
        "encoder": {"fingerprint": mark, "dim": encoder.dim},
        "config": config,
        "steps": steps_of(curve, config),
    }
    return mark


def steps_of(curve: Curve, config: dict[str, Any]) -> int:
    """How many steps a training had, whose curve has every batch."""
    return len(curve) // int(config.get("accumulate", 1))


def read_run(folder: Path, *, check: bool = False) -> tuple[dict[str, Any], dict[str, Any] | None, Curve]:
    """Its config, its metrics if there are any, and its curve."""
    config = read_manifest(folder, RUN_KIND, check=check)["config"]
    details = folder / "run"
    stated = details / "metrics.json"
    metrics = json.loads(stated.read_text("utf-8")) if stated.exists() else None
    with open(details / "curve.csv", newline="") as file:
        curve = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return config, metrics, curve


def _card(encoder: Encoder, curve: Curve, config: dict[str, Any], metrics: dict[str, Any] | None) -> str:
    """A model card: what was trained, from what, how, how well, and how to use it."""
    kinds = {"image": "pictures", "text": "texts"}
    taken = [kind for kind in kinds if encoder.takes(kind)]
    begun = [str(config[name]) for name in ("model", "image_model", "text_model") if config.get(name)]
    lines = [
        "---",
        "library_name: sentence-transformers",
        "tags: [sentence-transformers, retrieval-toolkit, feature-extraction]",
        "---",
        "",
        f"# {' and '.join(taken).capitalize()} encoder, {encoder.dim} dimensions",
        "",
        f"Trained by retrieval for {steps_of(curve, config):,} steps, starting from {' and '.join(f'`{name}`' for name in begun) or 'another encoder'}, "
        f"with the loss `{config.get('loss', 'hcl')}` (at the end κ = {curve[-1]['kappa']:.3g}, temperature {curve[-1]['temperature']:.3g}). All settings: `run/config.json`; the course of training: `run/curve.csv`.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'encoder = SentenceTransformer("path/of/this/folder")',
        *(f"vectors = encoder.encode({kinds[kind]}, normalize_embeddings=True)" for kind in taken),
        "```",
    ]
    for name, judged in (metrics or {}).items():
        title = f"| {name}, {judged['queries']:,} queries | before | after | difference, 95 % interval | |"
        lines += ["", title, "|---|---|---|---|---|"]
        lines += [
            f"| {metric} | {each['before']:.4f} | {each['after']:.4f} | {each['difference']:+.4f} "
            f"[{each['interval'][0]:+.4f}, {each['interval'][1]:+.4f}] | {each['verdict']} |"
            for metric, each in judged["metrics"].items()
        ]
    return "\n".join(lines) + "\n"
