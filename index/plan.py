"""Which types of index suit a number of vectors, a recall, a memory and a kind of use; before anything is built."""

from dataclasses import dataclass
from math import log2

from retrieval.errors import UserError

EXACT_UP_TO = 200_000  # vectors; where nothing is asked for, exact search answers in milliseconds and is never wrong
ALL_UP_TO = 2_000_000  # vectors; up to here the best types are built and the fastest is kept
RECALL = 0.95
MORE_LINKS_FROM = 0.97  # recall
LARGEST_TABLE = 2**31  # bytes of distances between centres and codebook that FAISS keeps for euclidean codes


@dataclass(frozen=True)
class Goal:
    """What an index is for. recall: of the k nearest, on average, 0 … 1. memory: bytes. latency: seconds a query may take.
    single: queries come one at a time, and not in batches. Raises UserError for what cannot be."""

    recall: float = RECALL
    k: int = 10
    memory: int | None = None
    latency: float | None = None
    single: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise UserError(f"recall {self.recall}: must be above 0 and at most 1")
        for name, value in (("k", self.k), ("memory", self.memory), ("latency", self.latency)):
            if value is not None and value <= 0:
                raise UserError(f"{name} {value}: must be above 0")


@dataclass(frozen=True)
class Candidate:
    """factory: FAISS's string. memory: bytes in all when searched. why: for people."""

    factory: str
    memory: int
    why: str


def candidates(count: int, dim: int, goal: Goal | None, metric: str = "cosine") -> list[Candidate]:
    """What is worth building, the most promising first: one type, or some of which the fastest is to be kept.

    Measured on 60,000 × 784, 140,000 × 384 and a million × 128 (docs/log.md): graphs answer single queries fastest; in
    batches, and the more the higher the recall, inverted files of 4-bit codes whose candidates are scored again, or of
    whole vectors where a look into one list or two is enough.

    Raises UserError where nothing fits the memory.
    """
    if goal is None:
        if count <= EXACT_UP_TO:
            return [
                _flat(count, dim, f"up to {EXACT_UP_TO:,} vectors exact search takes milliseconds and is never wrong")
            ]
        goal = Goal()
    if goal.recall >= 1 or count < 1000:
        why = (
            "only exact search finds all neighbours" if goal.recall >= 1 else "so few that exact search is the fastest"
        )
        found = [_flat(count, dim, why)]
    else:
        graphs, lists = _graphs(count, dim, goal), _lists(count, dim)
        if goal.single:
            found = graphs
        elif count <= ALL_UP_TO:
            found = [graphs[0], *lists, _whole_lists(count, dim)]
        else:
            found = [*lists, graphs[0]]
    fit = [one for one in found if goal.memory is None or one.memory <= goal.memory]
    if not fit and goal.recall < 1 and count >= 1000:
        fit = [one for one in _smaller(count, dim, metric) if one.memory <= (goal.memory or 0)][:1]
    if not fit:
        least = min(one.memory for one in [*found, *(_smaller(count, dim, metric) if goal.recall < 1 else [])])
        raise UserError(
            f"--memory {goal.memory:,} bytes: {count:,} × {dim} vectors need {least:,} at least at recall {goal.recall}; "
            f"give more, or fewer dimensions"
        )
    return fit if count <= ALL_UP_TO else fit[:1]


def lists_for(count: int) -> int:
    """How many lists an inverted file of 4-bit codes has: the power of two nearest to √n, which makes reading codes as much
    work as finding the lists; up to 4 √n for many vectors, whose codes do not stay in cache."""
    return int(2 ** max(2, round(log2(count**0.5 * (1 if count < 500_000 else 4)))))


def _flat(count: int, dim: int, why: str) -> Candidate:
    return Candidate("Flat", 4 * dim * count, why)


def _graphs(count: int, dim: int, goal: Goal) -> list[Candidate]:
    """More links pay at high recall, on some data: then both race for queries that come one by one."""
    why = "a graph: fastest for one query at a time" if goal.single else "a graph, held against lists"
    links = (16,) if goal.recall < MORE_LINKS_FROM else (16, 32) if goal.single else (32,)
    return [Candidate(f"HNSW{each}", count * (4 * dim + 4 * 2 * each + 17), why) for each in links]


def _in_lists(count: int, dim: int, code: int, block: int = 0) -> int:
    """Bytes of an inverted file: codes and their ids, the centres, and what fills the last block of codes in each list."""
    return count * (code + 8) + lists_for(count) * (4 * dim + block * code)


def _whole_lists(count: int, dim: int) -> Candidate:
    return Candidate(f"IVF{lists_for(count)},Flat", _in_lists(count, dim, 4 * dim), "lists of whole vectors")


def _lists(count: int, dim: int) -> list[Candidate]:
    """Inverted files whose codes are small enough to be compared in registers."""
    lists = lists_for(count)
    found = [
        Candidate(
            f"IVF{lists},PQ{dim // each}x4fs",
            _in_lists(count, dim, dim // each // 2, block=32) + 4 * dim * 16,
            f"lists of 4-bit codes of {each} dimensions, scored again",
        )
        for each in (2, 4)
        if dim % each == 0
    ]
    return found or [Candidate(f"IVF{lists},SQ8", _in_lists(count, dim, dim), "lists of 8-bit codes, scored again")]


def _smaller(count: int, dim: int, metric: str) -> list[Candidate]:
    """Codes of fewer and fewer bytes, whose vectors stay on disk."""
    lists = lists_for(count)
    found = [
        *_lists(count, dim),
        Candidate(f"IVF{lists},RaBitQ", _in_lists(count, dim, dim // 8 + 8), "one bit a dimension, scored again"),
    ]
    for each in (4, 8, 16):
        if dim % each == 0:
            codes = dim // each
            memory = _in_lists(count, dim, codes) + 4 * dim * (dim + 256)  # the rotation and the codebook
            if metric == "euclidean":
                memory += min(4 * lists * codes * 256, LARGEST_TABLE)
            found.append(Candidate(f"OPQ{codes},IVF{lists},PQ{codes}", memory, f"{codes} bytes a vector"))
    return sorted(found, key=lambda one: -one.memory)
