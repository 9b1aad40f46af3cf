"""The best so far: the k largest scores of each query, over scores that come a block at a time; and their order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = 32  # scores that are looked at together, at most
CHUNK = 2**18  # numbers that one thread selects from at a time
FALLING = np.int32(0x7FFFFFFF)  # negative floats fall as their bits rise

Floats = NDArray[np.float32]


class Best:
    """The `k` largest of each of `count` queries, in no order. Between merges `floor` is the k-th largest seen until then.

    Reading every score once, as maxima of groups, is most of the work: hardly any group reaches above the floor, and only
    those are looked into. `floor` never falls, and nothing that was left out is above it.
    """

    def __init__(self, count: int, k: int, device: torch.device) -> None:
        self.values = torch.full((count, k), -torch.inf, device=device)
        self.rows = torch.full((count, k), -1, device=device)
        self.floor = self.values[:, 0]
        self._k = k
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # (query, score, row) of single scores
        self._seen = self._merged_at = 0

    def add(self, scores: Tensor, start: int) -> None:
        """scores: (count, n) of rows start, start + 1, …, float32 or less"""
        group = min(GROUP, max(1, scores.shape[1] // (2 * self._k)))
        whole = scores.shape[1] // group * group
        self._add_groups(scores[:, :whole], start, group)
        if whole < scores.shape[1]:
            self._merge(*_with_rows(scores[:, whole:], start + whole))
        self._seen += scores.shape[1]
        pending = sum(len(part[0]) for part in self._pending)
        # Merges are few, since each waits for twice as many rows as the last; yet the floor is never far behind.
        if self._seen >= 2 * self._merged_at or pending > self.values.numel():
            self.finish()

    def _add_groups(self, scores: Tensor, start: int, size: int) -> None:
        width = scores.shape[1] // size
        # A group is every width-th score, which maxima vectorise over.
        grouped = scores.reshape(len(scores), size, width)
        highest = grouped.amax(1).float()
        floor = self.floor
        if self._seen == 0:  # as many groups as are asked for reach this, so as many scores do
            floor = highest.topk(self._k).values[:, -1] if self._k <= width else floor
            floor = floor.nextafter(floor.new_tensor(-torch.inf))
        query, group = (highest > floor[:, None]).nonzero(as_tuple=True)
        members = grouped[query, :, group].float()
        hit, member = (members > floor[query, None]).nonzero(as_tuple=True)
        row = start + member * width + group[hit]
        self._pending.append((query[hit], members[hit, member], row))

    def finish(self) -> None:
        """Take in what is pending."""
        if self._pending:
            query, value, row = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
            self._pending = []
            self._merge(*_as_table(query, value, row, len(self.values)))
        self._merged_at = self._seen

    def _merge(self, values: Tensor, rows: Tensor) -> None:
        values, rows = torch.cat([self.values, values.float()], 1), torch.cat([self.rows, rows], 1)
        best = values.topk(self._k, sorted=False)
        self.values.copy_(best.values)  # in place: what is kept stays where it is, or the heap would be full of holes
        self.rows.copy_(rows.gather(1, best.indices))
        self.floor = self.values.amin(1)


def keys_of(scores: Tensor, rows: Tensor) -> Tensor:
    """float32 scores and row numbers (below 2³²) as int64 whose rising order is: larger scores first, equal ones by row."""
    bits = (scores + 0.0).view(torch.int32)  # − 0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    return (~rising).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(rows)


def from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and rows that `keys_of` took."""
    rising = ~(keys >> 32).to(torch.int32)
    return (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32), keys & 0xFFFFFFFF


def first_keys(keys: Tensor, k: int) -> Tensor:
    """The k smallest of each row, in no order."""
    if keys.shape[1] <= k:
        return keys
    if keys.is_cuda:
        return keys.topk(k, largest=False, sorted=False).values
    return torch.from_numpy(np.partition(keys.numpy(), k - 1, axis=1)[:, :k])  # several times as fast as torch's


def in_order(keys: Tensor) -> Tensor:
    """Each row's keys, rising."""
    return keys.sort(dim=1).values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy(), axis=1))


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores (q, n), largest first, equal ones by row number: values (q, k) and row numbers.

    For a k that may be most of n; on as many threads as torch uses, since NumPy's selection lets go of the interpreter.
    """
    if scores.is_cuda:
        return from_keys(in_order(first_keys(keys_of(scores, torch.arange(scores.shape[1], device=scores.device)), k)))
    values, rows = torch.empty(len(scores), k), torch.empty((len(scores), k), dtype=torch.int64)
    height = max(1, CHUNK // scores.shape[1])

    def select(start: int) -> None:
        part = slice(start, start + height)
        _largest(scores[part].numpy(), values[part].numpy(), rows[part].numpy())

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(select, range(0, len(scores), height)))
    return values, rows


def _largest(scores: Floats, values: Floats, rows: NDArray[np.int64]) -> None:
    """Fill values and rows (q, k) by the keys of `keys_of`, made by NumPy, since torch would start threads of its own here."""
    bits = (scores + np.float32(0)).view(np.int32)
    keys = np.left_shift(~(bits ^ ((bits >> 31) & FALLING)), 32, dtype=np.int64)
    keys |= np.arange(scores.shape[1])
    keys.partition(values.shape[1] - 1, axis=1)
    best = np.sort(keys[:, : values.shape[1]], axis=1)
    rising = ~(best >> 32).astype(np.int32)
    values[:] = (rising ^ ((rising >> 31) & FALLING)).view(np.float32)
    np.bitwise_and(best, 0xFFFFFFFF, out=rows)


def _with_rows(scores: Tensor, start: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(start, start + scores.shape[1], device=scores.device)
    return scores, rows.expand(len(scores), -1)


def _as_table(query: Tensor, value: Tensor, row: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Single scores as (count, most) tables of values and rows, filled up with −∞ and −1."""
    query, order = query.sort()
    each = torch.bincount(query, minlength=count)
    place = torch.arange(len(query), device=query.device) - (each.cumsum(0) - each)[query]
    most = int(each.max())
    values = torch.full((count, most), -torch.inf, device=value.device)
    rows = torch.full((count, most), -1, device=value.device)
    values[query, place], rows[query, place] = value[order], row[order]
    return values, rows
