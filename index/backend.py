"""The one home of faiss: imported late, after torch, and set up for this processor."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from retrieval.errors import UserError, is_out_of_memory

PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


def installed() -> dict[str, str]:
    """The FAISS packages here, with versions. They own one and the same folder, so more than one is a broken install."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def faiss() -> Any:
    """The faiss module. Raises UserError where no FAISS package is installed, or more than one."""
    found = installed()
    if not found:
        raise UserError(
            "FAISS is not installed; pip install 'retrieval-toolkit[cpu]' (or [gpu] on a machine with an NVIDIA GPU)"
        )
    if len(found) > 1:
        named = " and ".join(found)
        raise UserError(
            f"{named} are both installed and overwrite each other; pip uninstall {' '.join(found)}, then install one"
        )
    # The wheels bundle an OpenBLAS of 2021 that knows no newer processor and falls back to SSE3 kernels, 4-10 × slower.
    kernels = _openblas_kernels()
    if kernels:
        os.environ.setdefault("OPENBLAS_CORETYPE", kernels)
    import torch  # noqa: F401 - torch first: the other order has crashed at import

    try:
        import faiss as module
    except (ImportError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{next(iter(found))} is installed but does not import ({error}); install it again") from None
    module.cvar.distance_compute_blas_threshold = 2  # matrix products from two queries on
    return module


def _openblas_kernels() -> str | None:
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return None
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= flags else None


def faiss_metric(metric: str) -> int:
    """FAISS's number for one of `metrics.METRICS`; cosines are products of unit vectors."""
    return int(faiss().METRIC_L2 if metric == "euclidean" else faiss().METRIC_INNER_PRODUCT)


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Searches by so many threads, None for all; yields how many those are."""
    import torch

    before = faiss().omp_get_max_threads(), torch.get_num_threads()
    if count is not None:
        faiss().omp_set_num_threads(count)
        torch.set_num_threads(count)
    try:
        yield before[0] if count is None else count
    finally:
        faiss().omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])
