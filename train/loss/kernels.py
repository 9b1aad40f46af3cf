"""Triton kernels: a tile of logits is made, used and dropped, so that no logit but a chunk's gradient reaches memory.

All three walk over tiles of z = cos/t (anchors · candidatesᵀ, accumulated in float32) and differ in what they do with one:
`sums_kernel` adds up an anchor's negatives by a running maximum and two sums, `positives_kernel` its same-class positives,
`gradient_kernel` writes the gradient in every logit of a few anchors. `tiles.py` launches them and does the rest.

Letters: A anchors, C candidates, D dimensions, M partners of an anchor, S splits of the candidates; BA, BC, BD sides of a tile.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1e30)  # a maximum over nothing; finite, so that differences stay numbers


@triton.jit
def _logits(
    anchors, candidates, norm_a, norm_c, rows, cols, A, C, sharpness,
    D: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BA, BC) logits. norm_a, norm_c: 1 over the rows' lengths, so that half-precision rows multiply unrounded."""
    total = tl.zeros((BA, BC), tl.float32)
    of_rows = anchors + rows.to(tl.int64)[:, None] * D
    of_cols = candidates + cols.to(tl.int64)[None, :] * D
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        x = tl.load(of_rows + d[None, :], mask=(rows < A)[:, None] & (d < D)[None, :], other=0.0)
        y = tl.load(of_cols + d[:, None], mask=(cols < C)[None, :] & (d < D)[:, None], other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    lengths = tl.load(norm_a + rows, mask=rows < A, other=0.0)[:, None]
    lengths = lengths * tl.load(norm_c + cols, mask=cols < C, other=0.0)[None, :]
    return total * lengths * sharpness


@triton.jit
def _relations(
    rows, cols, A, C, own, partners, label_a, label_c, item_a, item_c,
    OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """Which of a tile are negatives, and which are positives by label (none without labels), both (BA, BC) bool."""
    inside = (rows < A)[:, None] & (cols < C)[None, :]
    nobody = tl.zeros((rows.shape[0], cols.shape[0]), tl.int1)
    itself = nobody
    if OWN:
        itself = tl.load(own + rows, mask=rows < A, other=-1)[:, None] == cols[None, :]
    if LABELS:
        mine = tl.load(label_a + rows, mask=rows < A, other=0)
        theirs = tl.load(label_c + cols, mask=cols < C, other=0)
        same = mine[:, None] == theirs[None, :]
        positive = inside & same & (itself == 0)
        out = same
    else:
        positive = nobody
        out = itself
        for m in tl.static_range(M):
            partner = tl.load(partners + rows * M + m, mask=rows < A, other=-1)
            out = out | (partner[:, None] == cols[None, :])
    if ITEMS:
        mine = tl.load(item_a + rows, mask=rows < A, other=0)
        theirs = tl.load(item_c + cols, mask=cols < C, other=0)
        out = out | (mine[:, None] == theirs[None, :])
    return inside & (out == 0), positive


@triton.jit
def sums_kernel(
    anchors, candidates, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c,
    out_top, out_weighed, out_weights, out_count, A, C, columns, sharpness, beta,
    D: tl.constexpr, OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    HARD: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of an anchor's negatives among `columns` candidates: the largest logit, Σ e^{(1+β)(z−top)}, Σ e^{β(z−top)}, how many.

    Outputs (S, A). The maximum leaves before β multiplies.
    """
    rows = tl.program_id(0) * BA + tl.arange(0, BA)
    split = tl.program_id(1)
    top = tl.full((BA,), NOTHING, tl.float32)
    weighed = tl.zeros((BA,), tl.float32)
    weights = tl.zeros((BA,), tl.float32)
    count = tl.zeros((BA,), tl.int32)
    first = split * columns
    for start in range(first, tl.minimum(first + columns, C), BC):
        cols = start + tl.arange(0, BC)
        z = _logits(anchors, candidates, norm_a, norm_c, rows, cols, A, C, sharpness, D, BA, BC, BD, PRECISION)
        negative, _ = _relations(
            rows, cols, A, C, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
        )
        count += tl.sum(negative.to(tl.int32), 1)
        z = tl.where(negative, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 1))
        z -= higher[:, None]
        shrink = tl.exp(top - higher)
        if HARD:
            w = tl.exp(beta * z)
            fade = tl.exp(beta * (top - higher))
            weights = weights * fade + tl.sum(w, 1)
            weighed = weighed * fade * shrink + tl.sum(tl.exp(z) * w, 1)
        else:
            weighed = weighed * shrink + tl.sum(tl.exp(z), 1)
        top = higher
    at = split * A + rows
    tl.store(out_top + at, top, mask=rows < A)
    tl.store(out_weighed + at, weighed, mask=rows < A)
    tl.store(out_weights + at, weights, mask=rows < A)
    tl.store(out_count + at, count, mask=rows < A)


@triton.jit
def positives_kernel(
    anchors, candidates, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c, level,
    out_count, out_sum, out_softplus, out_sigmoid, out_top, out_exp, A, C, columns, sharpness,
    D: tl.constexpr, OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    BA: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Over an anchor's positives by label: how many, Σ z, Σ log(1 + e^{level − z}), Σ σ(level − z), max z, Σ e^{z − max}.

    level: (A,). Outputs (S, A). Tiles without a positive are passed over before anything is multiplied.
    """
    rows = tl.program_id(0) * BA + tl.arange(0, BA)
    split = tl.program_id(1)
    u = tl.load(level + rows, mask=rows < A, other=0.0)
    count = tl.zeros((BA,), tl.float32)
    total = tl.zeros((BA,), tl.float32)
    softplus = tl.zeros((BA,), tl.float32)
    sigmoid = tl.zeros((BA,), tl.float32)
    top = tl.full((BA,), NOTHING, tl.float32)
    exps = tl.zeros((BA,), tl.float32)
    first = split * columns
    for start in range(first, tl.minimum(first + columns, C), BC):
        cols = start + tl.arange(0, BC)
        _, positive = _relations(
            rows, cols, A, C, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
        )
        if tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0:
            z = _logits(anchors, candidates, norm_a, norm_c, rows, cols, A, C, sharpness, D, BA, BC, BD, PRECISION)
            x = u[:, None] - z
            e = tl.exp(-tl.abs(x))
            count += tl.sum(positive.to(tl.float32), 1)
            total += tl.sum(tl.where(positive, z, 0.0), 1)
            softplus += tl.sum(tl.where(positive, tl.maximum(x, 0.0) + tl.log(1.0 + e), 0.0), 1)
            sigmoid += tl.sum(tl.where(positive, tl.where(x >= 0, 1.0, e) / (1.0 + e), 0.0), 1)
            z = tl.where(positive, z, float("-inf"))
            higher = tl.maximum(top, tl.max(z, 1))
            exps = exps * tl.exp(top - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
            top = higher
    at = split * A + rows
    tl.store(out_count + at, count, mask=rows < A)
    tl.store(out_sum + at, total, mask=rows < A)
    tl.store(out_softplus + at, softplus, mask=rows < A)
    tl.store(out_sigmoid + at, sigmoid, mask=rows < A)
    tl.store(out_top + at, top, mask=rows < A)
    tl.store(out_exp + at, exps, mask=rows < A)


@triton.jit
def _pull(
    z,
    negative,
    positive,
    top,
    push,
    draw,
    level,
    share,
    beta,
    HARD: tl.constexpr,
    THROUGH: tl.constexpr,
    ENTRY: tl.constexpr,
):
    """The gradient of an anchor's loss in its logits; the anchor's numbers broadcast over the tile.

    Negatives: p = push e^{(1+β)(z−top)}; where it goes through the weights p + β (p + draw e^{β(z−top)}), the two added
    before β multiplies them, since they nearly cancel. Positives by label, share = 1/count: − share σ(level − z) coupled, e^{z−level} − share shared, − share decoupled.
    """
    shifted = tl.where(negative, tl.minimum(z - top, 0.0), 0.0)
    p = push * tl.exp(shifted)
    if HARD:
        w = tl.exp(beta * shifted)
        p = p * w
        if THROUGH:
            p = p + beta * (p + draw * w)
    found = tl.where(negative, p, 0.0)
    if ENTRY == "coupled":
        x = level - z
        e = tl.exp(-tl.abs(x))
        found = tl.where(positive, -share * tl.where(x >= 0, 1.0, e) / (1.0 + e), found)
    elif ENTRY == "shared":
        found = tl.where(positive, tl.exp(tl.minimum(z - level, 0.0)) - share, found)
    elif ENTRY == "decoupled":
        found = tl.where(positive, -share + z * 0.0, found)
    return found


@triton.jit
def gradient_kernel(
    anchors, candidates, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c,
    top, push, draw, level, share, out, first_row, A, C, sharpness, beta,
    D: tl.constexpr, OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    HARD: tl.constexpr, THROUGH: tl.constexpr, SYMMETRIC: tl.constexpr, ENTRY: tl.constexpr,
    BA: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient in the logits of A − first_row anchors, from `first_row` on: out (A − first_row, C).

    top, push, draw, level, share: (A,) as in `_pull`. SYMMETRIC: anchors and candidates are the same rows; the gradient of
    the mirrored logit is added, so that one matrix product serves both sides. Neighbouring programs share candidates.
    """
    rows = first_row + tl.program_id(0) * BA + tl.arange(0, BA)
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    z = _logits(anchors, candidates, norm_a, norm_c, rows, cols, A, C, sharpness, D, BA, BC, BD, PRECISION)
    negative, positive = _relations(
        rows, cols, A, C, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
    )
    there = rows < A
    found = _pull(
        z, negative, positive,
        tl.load(top + rows, mask=there, other=0.0)[:, None], tl.load(push + rows, mask=there, other=0.0)[:, None],
        tl.load(draw + rows, mask=there, other=0.0)[:, None], tl.load(level + rows, mask=there, other=0.0)[:, None],
        tl.load(share + rows, mask=there, other=0.0)[:, None], beta, HARD, THROUGH, ENTRY,
    )  # fmt: skip
    if SYMMETRIC:
        there = cols < C
        found += _pull(
            z, negative, positive,
            tl.load(top + cols, mask=there, other=0.0)[None, :], tl.load(push + cols, mask=there, other=0.0)[None, :],
            tl.load(draw + cols, mask=there, other=0.0)[None, :], tl.load(level + cols, mask=there, other=0.0)[None, :],
            tl.load(share + cols, mask=there, other=0.0)[None, :], beta, HARD, THROUGH, ENTRY,
        )  # fmt: skip
    at = (rows - first_row).to(tl.int64)[:, None] * C + cols[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=(rows < A)[:, None] & (cols < C)[None, :])
