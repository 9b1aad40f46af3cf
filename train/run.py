"""A run on disk: the encoder itself, and under `run/` how it came to be.

RUN/modules.json, *.safetensors, …   opens with plain SentenceTransformer(RUN)
RUN/run/config.json, curve.csv, metrics.json
RUN/manifest.json                    written last, with the versions of everything
"""

import csv
import json
from pathlib import Path
from typing import Any

from retrieval.artifact import creating
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
        encoder.model.save_pretrained(str(folder), create_model_card=True)
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
        manifest |= {"encoder": {"fingerprint": mark, "dim": encoder.dim}, "config": config, "steps": len(curve)}
    return mark
