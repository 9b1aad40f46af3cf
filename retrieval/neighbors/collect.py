"""The best so far on a GPU: one kernel reads every score once and writes down those above the floor.

`select.Best` finds them by some forty operations on tensors; on a GPU their launches would take longer than the products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROOM = 2048  # scores that are held beside the k best of each query, at least
READ = 1024  # scores that a program reads; measured on an H200, docs/log.md


@triton.jit
def collect_kernel(scores, floor, counts, values, rows, n, first, room, stride, READ: tl.constexpr):
    """Append the scores of one query that are above its floor, and their rows, as far as there is room.

    scores: (q, n) of rows first …, `stride` apart. floor: (q,). counts: (q,) how many there are, those without room too.
    values, rows: (q, room).
    """
    query = tl.program_id(1).to(tl.int64)  # columns may be more than a grid's second axis holds
    columns = tl.program_id(0) * READ + tl.arange(0, READ)
    found = tl.load(scores + query * stride + columns, mask=columns < n, other=float("-inf")).to(tl.float32)
    above = (found > tl.load(floor + query)).to(tl.int32)
    number = tl.sum(above, 0)
    if number > 0:
        place = tl.atomic_add(counts + query, number) + tl.cumsum(above, 0) - 1
        kept = (above > 0) & (place < room)
        tl.store(values + query * room + place, found, mask=kept)
        tl.store(rows + query * room + place, first + columns.to(tl.int64), mask=kept)


class Collected:
    """As `select.Best`: the `k` largest of each of `count` queries, in no order, and a floor that nothing left out is above."""

    def __init__(self, count: int, k: int, device: torch.device) -> None:
        self._k, self._room = k, k + max(ROOM, 4 * k)
        self._values = torch.full((count, self._room), -torch.inf, device=device)
        self._rows = torch.full((count, self._room), -1, device=device)
        self._counts = torch.full((count,), k, dtype=torch.int32, device=device)
        self._seen = self._merged_at = 0
        self.floor = torch.full((count,), -torch.inf, device=device)

    @property
    def values(self) -> Tensor:
        """(count, k) float32"""
        return self._values[:, : self._k]

    @property
    def rows(self) -> Tensor:
        """(count, k)"""
        return self._rows[:, : self._k]

    def add(self, scores: Tensor, start: int) -> None:
        """scores: (count, n) of rows start, start + 1, …, float32 or less"""
        done = 0
        while done < scores.shape[1]:
            step = self._step()
            if step <= 0:
                self.finish()
                continue
            part = scores[:, done : done + step]
            self._take(part, start + done)
            done += part.shape[1]
            if not self._merged_at:
                self.finish()

    def _step(self) -> int:
        """How many more scores will fill half of the room, if they are like those seen; after a merge at least as many as there
        is room for."""
        free, pending = self._room - self._k, self._seen - self._merged_at
        likely = self._merged_at * free // (2 * self._k) - pending
        return likely if pending else max(free, likely)

    def _take(self, scores: Tensor, start: int) -> None:
        before = self._counts.clone()
        count, n = scores.shape
        collect_kernel[(-(-n // READ), count)](
            scores,
            self.floor,
            self._counts,
            self._values,
            self._rows,
            n,
            start,
            self._room,
            scores.stride(0),
            READ=READ,
        )
        if int(self._counts.max()) <= self._room:
            self._seen += n
            return
        self._counts = before  # not like those seen: once more with a higher floor, or in halves
        half = -(-n // 2)
        if self._seen > self._merged_at:
            self.finish()
            half = n
        for first in range(0, n, half):
            self._take(scores[:, first : first + half], start + first)

    def finish(self) -> None:
        """Keep the k best, raise the floor."""
        there = torch.arange(self._room, device=self.floor.device) < self._counts[:, None]
        best = self._values.where(there, -torch.inf).topk(self._k, sorted=False)
        self._rows[:, : self._k] = self._rows.gather(1, best.indices)
        self._values[:, : self._k] = best.values
        self._counts.fill_(self._k)
        self.floor = best.values.amin(1)
        self._merged_at = self._seen
