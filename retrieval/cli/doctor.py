"""`retrieval doctor`."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from retrieval.errors import UserError

from .commands import Fault
from .options import common
from .output import emit


@click.command()
@common
def doctor(seed: int, as_json: bool) -> None:
    """Say what is installed, which devices there are, what is wrong and how to fix it.

    \b
    Example:
      retrieval doctor
    """
    from retrieval.artifact import environment

    found: dict[str, Any] = {"versions": environment(), "devices": _devices(), "cores": os.cpu_count()}
    found["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    problems = []
    try:
        from retrieval.index.backend import faiss

        found["faiss"] = (
            f"{faiss().__version__}, {faiss().get_num_gpus() if hasattr(faiss(), 'get_num_gpus') else 0} GPUs"
        )
    except UserError as error:
        found["faiss"] = None
        problems.append(str(error))
    from retrieval.encoder import bundled_minilm

    bundled = bundled_minilm()
    found["offline_encoder"] = "all-MiniLM-L6-v2" if bundled else None
    if found["free_disk_gb"] < 1:
        problems.append(f"only {found['free_disk_gb']} GB of disk left here; free some")
    found["problems"] = problems
    lines = [f"{name:<24} {version}" for name, version in found["versions"].items()]
    lines += [
        f"{'devices':<24} {', '.join(found['devices'])}; {found['cores']} cores",
        f"{'faiss':<24} {found['faiss'] or 'missing'}",
        f"{'offline encoder':<24} {found['offline_encoder'] or 'none: pip install retrieval-toolkit[offline] for one without a hub'}",
        f"{'free disk':<24} {found['free_disk_gb']} GB",
        *(f"Problem: {problem}" for problem in problems),
        "all is well" if not problems else "",
    ]
    emit(found, as_json, [line for line in lines if line])
    if problems:
        sys.exit(Fault.exit_code)


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])
