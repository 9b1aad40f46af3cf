"""A run on disk: the encoder itself, and under `run/` how it came to be.

RUN/modules.json, *.safetensors, …   opens with plain SentenceTransformer(RUN)
RUN/README.md                        the model card
RUN/run/config.json, curve.csv, metrics.json
RUN/manifest.json                    written last, with the versions of everything
"""

import csv
import json
from pathlib import Path
from typing import Any

from retrieval.artifact import creating, now, read_manifest
from retrieval.encoder import RUN_KIND, Encoder, fingerprint

from .curve import Curve


def save_run(
    output: Path,
    encoder: Encoder,
    curve: Curve,
    config: dict[str, Any],
    metrics: dict[str, Any] | None,
    *,
    overwrite: bool = False,
) -> str:
    """Write the run; returns the fingerprint of its encoder. metrics: {"before": {…}, "after": {…}} on held-out data."""
    with creating(output, RUN_KIND, overwrite=overwrite) as (folder, manifest):
        encoder.model.save_pretrained(str(folder), create_model_card=False)
        (folder / "README.md").write_text(_card(encoder, curve, config, metrics), "utf-8")
        details = folder / "run"
        details.mkdir()
        (details / "config.json").write_text(json.dumps(config, indent=2))
        if metrics is not None:
            (details / "metrics.json").write_text(json.dumps(metrics, indent=2))
        with open(details / "curve.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(curve[0]))
            writer.writeheader()
            writer.writerows(curve)
        mark = fingerprint(encoder.model)
        manifest |= {
            "created": now(),
            "encoder": {"fingerprint": mark, "dim": encoder.dim},
            "config": config,
            "steps": len(curve),
        }
    return mark


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
    kind = "image" if encoder.takes("image") else "text"
    lines = [
        "---",
        "library_name: sentence-transformers",
        "tags: [sentence-transformers, retrieval-toolkit, feature-extraction]",
        "---",
        "",
        f"# {kind.capitalize()} encoder, {encoder.dim} dimensions",
        "",
        f"Trained by retrieval for {len(curve):,} steps, starting from `{config.get('model', 'another encoder')}`, "
        f"with the loss `{config.get('loss', 'hcl')}`. All settings: `run/config.json`; the course of training: `run/curve.csv`.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'encoder = SentenceTransformer("path/of/this/folder")',
        f"vectors = encoder.encode({'pictures' if kind == 'image' else 'texts'}, normalize_embeddings=True)",
        "```",
    ]
    if metrics is not None:
        lines += ["", "| on held-out items | before | after |", "|---|---|---|"]
        pairs = ((name, metrics["before"][name], metrics["after"][name]) for name in metrics["after"])
        lines += [f"| {name} | {before:.4g} | {after:.4g} |" for name, before, after in pairs]
    return "\n".join(lines) + "\n"
