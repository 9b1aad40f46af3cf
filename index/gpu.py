"""FAISS on GPUs: which types it has there, cloning to one or several, training and assignment for indexes of the CPU.

Run on one H200; not yet run: several GPUs, CAGRA.
"""

import re
from functools import cache
from typing import Any

import numpy as np

from retrieval.errors import UserError
from retrieval.neighbors import Floats, exact_neighbors

from .backend import faiss, installed
from .kinds import Settings, layers, lists_of

LARGEST_K = 2048  # of FAISS's own kernels; cuVS takes 16,384


def gpus(device: str) -> list[int]:
    """The numbers in "cuda", "cuda:1" or "cuda:0,cuda:1". Raises UserError unless FAISS can use them."""
    if not all(re.fullmatch(r"cuda(:\d+)?", name) for name in device.split(",")):
        raise UserError(f'{device!r} is no device; write cpu, cuda, cuda:1 or "cuda:0,cuda:1"')
    numbers = [int(name.partition(":")[2] or 0) for name in device.split(",")]
    if not hasattr(faiss(), "StandardGpuResources"):
        names = " and ".join(installed())
        raise UserError(f"{device}: {names} has no GPU code; pip uninstall it, then install '.[gpu]'")
    here = faiss().get_num_gpus()
    if max(numbers) >= here:
        raise UserError(f"{device}: FAISS sees {here} GPUs here, counted from 0; use cpu or one of them")
    return numbers


def to_gpus(index: Any, device: str, *, shards: bool = False) -> Any:
    """A copy of an index on one GPU or several: whole on each, or with `shards` a part on each.

    Raises UserError for a type that FAISS has on no GPU; it is never searched on the CPU instead.
    """
    f, numbers = faiss(), gpus(device)
    for part in layers(index):
        if not isinstance(
            part, f.IndexFlat | f.IndexIVFFlat | f.IndexIVFPQ | f.IndexIVFScalarQuantizer | f.IndexPreTransform
        ):
            raise UserError(
                f"{device}: FAISS has no {type(part).__name__.removeprefix('Index')} on a GPU; search it on "
                f"cpu, or build --factory IVF…,Flat, IVF…,PQ… or IVF…,SQ8"
            )
    options = f.GpuMultipleClonerOptions()
    options.shard = shards and len(numbers) > 1
    if options.shard:
        options.shard_type, options.common_ivf_quantizer = 1, True
    try:
        return f.index_cpu_to_gpu_multiple_py([_resources(n) for n in numbers], index, options, gpus=numbers)
    except RuntimeError as error:
        raise UserError(f"{device}: FAISS cannot put it there ({' '.join(str(error).split())[:200]})") from None


@cache
def _resources(number: int) -> Any:
    """One for each GPU: it holds 1.5 GiB of its memory."""
    found = faiss().StandardGpuResources()
    found.setDefaultNullStreamAllDevices()
    return found


def set_on_gpus(index: Any, settings: Settings) -> None:
    """Set search parameters on the index itself: copies on several GPUs take none with a call."""
    if "nprobe" in settings:
        faiss().GpuParameterSpace().set_index_parameter(index, "nprobe", settings["nprobe"])


def train_on(index: Any, device: str) -> Any:
    """Let an inverted file's k-means assign on GPUs; returns what must be kept until it is trained."""
    f, lists = faiss(), lists_of(index)
    if lists is None:
        return None
    numbers, flat = gpus(device), f.IndexFlat(lists.d, lists.metric_type)
    lists.clustering_index = f.index_cpu_to_gpu_multiple_py([_resources(n) for n in numbers], flat, gpus=numbers)
    return lists.clustering_index


def add_assigned(index: Any, vectors: Floats, first: int, device: str) -> None:
    """Add rows first, first + 1, … to an inverted file of the CPU, each assigned to its list by exact search on a device."""
    f, lists = faiss(), lists_of(index)
    assert lists is not None
    if isinstance(index, f.IndexPreTransform):
        for number in range(index.chain.size()):
            vectors = index.chain.at(number).apply(vectors)
    centres = lists.quantizer.reconstruct_n(0, lists.nlist)
    metric = "euclidean" if lists.metric_type == f.METRIC_L2 else "inner_product"
    assigned = exact_neighbors(vectors, centres, 1, metric=metric, device=device).ids[:, 0]
    ids = np.arange(first, first + len(vectors))
    pointer = f.swig_ptr
    lists.add_core(len(vectors), pointer(vectors), pointer(ids), pointer(np.ascontiguousarray(assigned)))
    index.ntotal = lists.ntotal


def require_cagra(factory: str, device: str) -> int:
    """The degree of "CAGRA64". Raises UserError where such a graph cannot be built."""
    degree = factory.removeprefix("CAGRA")
    if not degree.isdigit():
        raise UserError(f"--factory {factory!r}: write CAGRA and the links of each node, such as CAGRA64")
    if device == "cpu":
        raise UserError(f"--factory {factory}: is built on a GPU; give --device cuda")
    if not hasattr(faiss(), "GpuIndexCagra"):
        raise UserError(
            f"--factory {factory}: needs faiss-gpu-cuvs; pip install '.[cuvs]' in an environment of its own"
        )
    return int(degree)


def cagra(vectors: Floats, metric: int, factory: str, device: str) -> Any:
    """A CAGRA graph built on a GPU, as an HNSW index of one level that the CPU searches."""
    f, degree, number = faiss(), require_cagra(factory, device), gpus(device)[0]
    config = f.GpuIndexCagraConfig()
    config.device, config.graph_degree, config.intermediate_graph_degree = number, degree, 2 * degree
    built = f.GpuIndexCagra(_resources(number), vectors.shape[1], metric, config)
    built.train(vectors)
    found = f.IndexHNSWCagra()
    built.copyTo(found)
    return found
