"""Triton kernels: one pass each over a tile of logits, whose matrix product a library has made, so that neither masks nor
exponentials nor the gradient in a logit ever exist for more than that.

`sums_kernel` adds up an anchor's negatives by a running maximum and two sums, `positives_kernel` its same-class positives,
`gradient_kernel` writes the gradient in every logit. `tiles.py` makes the products, launches them and does the rest.

A tile has anchors first_a … last_a − 1 against candidates first_c … last_c − 1. Letters: M partners of an anchor; BA, BC sides
of a program's part.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1e30)  # a maximum over nothing; finite, so that differences stay numbers


@triton.jit
def _logits(products, norm_a, norm_c, rows, cols, first_a, last_a, first_c, last_c, step_a, step_c, sharpness):
    """(BA, BC) logits, which lie step_a and step_c apart. norm_a, norm_c: 1 over the rows' lengths, so that half-precision rows multiply unrounded."""
    inside = (rows < last_a)[:, None] & (cols < last_c)[None, :]
    at = (rows - first_a)[:, None] * step_a + (cols - first_c)[None, :] * step_c
    lengths = tl.load(norm_a + rows, mask=rows < last_a, other=0.0)[:, None]
    lengths = lengths * tl.load(norm_c + cols, mask=cols < last_c, other=0.0)[None, :]
    return tl.load(products + at, mask=inside, other=0.0) * lengths * sharpness


@triton.jit
def _relations(
    rows, cols, last_a, last_c, own, partners, label_a, label_c, item_a, item_c,
    OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """Which of a tile are negatives, and which are positives by label (none without labels), both (BA, BC) bool."""
    inside = (rows < last_a)[:, None] & (cols < last_c)[None, :]
    nobody = tl.zeros((rows.shape[0], cols.shape[0]), tl.int1)
    itself = nobody
    if OWN:
        itself = tl.load(own + rows, mask=rows < last_a, other=-1)[:, None] == cols[None, :]
    if LABELS:
        mine = tl.load(label_a + rows, mask=rows < last_a, other=0)
        theirs = tl.load(label_c + cols, mask=cols < last_c, other=0)
        same = mine[:, None] == theirs[None, :]
        positive = inside & same & (itself == 0)
        out = same
    else:
        positive = nobody
        out = itself
        for m in tl.static_range(M):
            partner = tl.load(partners + rows * M + m, mask=rows < last_a, other=-1)
            out = out | (partner[:, None] == cols[None, :])
    if ITEMS:
        mine = tl.load(item_a + rows, mask=rows < last_a, other=0)
        theirs = tl.load(item_c + cols, mask=cols < last_c, other=0)
        out = out | (mine[:, None] == theirs[None, :])
    return inside & (out == 0), positive


@triton.jit
def sums_kernel(
    products, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c,
    out_top, out_weighed, out_weights, out_count, first_a, last_a, first_c, last_c, step_a, step_c, sharpness, beta,
    OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    HARD: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of an anchor's negatives in a tile: the largest logit, Σ e^{(1+β)(z−top)}, Σ e^{β(z−top)}, how many.

    Outputs (A,). The maximum leaves before β multiplies.
    """
    rows = first_a + tl.program_id(0) * BA + tl.arange(0, BA)
    top = tl.full((BA,), NOTHING, tl.float32)
    weighed = tl.zeros((BA,), tl.float32)
    weights = tl.zeros((BA,), tl.float32)
    count = tl.zeros((BA,), tl.int32)
    for start in range(first_c, last_c, BC):
        cols = start + tl.arange(0, BC)
        z = _logits(products, norm_a, norm_c, rows, cols, first_a, last_a, first_c, last_c, step_a, step_c, sharpness)
        negative, _ = _relations(
            rows, cols, last_a, last_c, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
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
    tl.store(out_top + rows, top, mask=rows < last_a)
    tl.store(out_weighed + rows, weighed, mask=rows < last_a)
    tl.store(out_weights + rows, weights, mask=rows < last_a)
    tl.store(out_count + rows, count, mask=rows < last_a)


@triton.jit
def positives_kernel(
    products, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c, level,
    out_count, out_sum, out_softplus, out_sigmoid, out_top, out_exp, first_a, last_a, first_c, last_c, step_a, step_c, sharpness,
    OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    BA: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Over an anchor's positives by label in a tile: how many, Σ z, Σ log(1 + e^{level − z}), Σ σ(level − z), max z,
    Σ e^{z − max}. level and outputs: (A,)."""
    rows = first_a + tl.program_id(0) * BA + tl.arange(0, BA)
    u = tl.load(level + rows, mask=rows < last_a, other=0.0)
    count = tl.zeros((BA,), tl.float32)
    total = tl.zeros((BA,), tl.float32)
    softplus = tl.zeros((BA,), tl.float32)
    sigmoid = tl.zeros((BA,), tl.float32)
    top = tl.full((BA,), NOTHING, tl.float32)
    exps = tl.zeros((BA,), tl.float32)
    for start in range(first_c, last_c, BC):
        cols = start + tl.arange(0, BC)
        _, positive = _relations(
            rows, cols, last_a, last_c, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
        )
        if tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0:
            z = _logits(
                products, norm_a, norm_c, rows, cols, first_a, last_a, first_c, last_c, step_a, step_c, sharpness
            )
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
    there = rows < last_a
    tl.store(out_count + rows, count, mask=there)
    tl.store(out_sum + rows, total, mask=there)
    tl.store(out_softplus + rows, softplus, mask=there)
    tl.store(out_sigmoid + rows, sigmoid, mask=there)
    tl.store(out_top + rows, top, mask=there)
    tl.store(out_exp + rows, exps, mask=there)


@triton.jit
def _log_sum(x, y):
    """log(e^x + e^y), of which one may be −∞."""
    top = tl.maximum(x, y)
    return top + tl.log(tl.exp(x - top) + tl.exp(y - top))


@triton.jit
def losses_kernel(
    top, weighed, weights, count, z_pos, out_loss, out_on_floor, out_to_floor, out_push, out_draw, out_pairs,
    A, beta, log_tau, log_rest, floor, published,
    M: tl.constexpr, DEBIASED: tl.constexpr, THROUGH: tl.constexpr, ENTRY: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """`blocks.losses_of` and its gradients, of anchors whose partners are their positives.

    top, weighed, weights, count: (A,) as `sums_kernel` has them. z_pos: (A, M). published: what an anchor's negatives stand
    for, 0 for as many as they are. log_tau, log_rest: log τ⁺, log(1 − τ⁺). Outputs (A,), but out_pairs (A, M), the gradient in
    z_pos: the loss, whether it is on the floor, its gradient in the floor, push and draw as in `_pull`.
    """
    rows = tl.program_id(0) * BA + tl.arange(0, BA)
    there = rows < A
    number = tl.load(count + rows, mask=there, other=0)
    some = number > 0
    total = tl.where(some, tl.load(weighed + rows, mask=there, other=1.0), 1.0)
    spread = tl.where(some, tl.load(weights + rows, mask=there, other=1.0), 1.0)
    log_n = tl.log(tl.maximum(number, 1).to(tl.float32))
    log_r = tl.load(top + rows, mask=there, other=0.0) + tl.log(total)
    stands_for = tl.where(published > 0, tl.log(tl.maximum(published, 1).to(tl.float32)), log_n)
    log_r = tl.where(some, log_r + stands_for - tl.log(spread), float("-inf"))

    positive = tl.zeros((BA,), tl.float32) + float("-inf")  # log Σ e^p
    hard = positive  # log Σ e^{(1+β)p}
    soft = positive  # log Σ e^{βp}
    for m in tl.static_range(M):
        z = tl.load(z_pos + rows * M + m, mask=there, other=0.0)
        positive = _log_sum(positive, z)
        hard = _log_sum(hard, (1 + beta) * z)
        soft = _log_sum(soft, beta * z)

    log_ng = log_r
    back = tl.where(some, 1.0, 0.0)  # the gradient of log Ng in log R
    taken = tl.zeros((BA,), tl.float32)  # minus that in the positive
    on_floor = some & (number < 0)
    if DEBIASED:
        expected = hard - soft if M > 1 else positive  # log E[e^p] under the weights
        gap = log_tau + log_n + expected - log_r  # log of the share of R that is taken away
        on_floor = gap >= 0
        x = tl.where(on_floor, -1.0, gap)
        near = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
        left = tl.where(x > -0.1, near, 1 - tl.exp(x))  # 1 − e^x
        least = log_n + floor
        log_ng = log_r + tl.log(left) - log_rest
        on_floor = some & (on_floor | (log_ng < least))
        log_ng = tl.where(on_floor, least, tl.where(some, log_ng, log_r))
        taken = tl.where(on_floor | (some == 0), 0.0, tl.exp(x) / left)
        back = tl.where(on_floor, 0.0, back + taken)

    share = 1.0 / M
    loss = tl.zeros((BA,), tl.float32)
    to_ng = tl.zeros((BA,), tl.float32)
    level = log_ng
    if ENTRY == "shared":
        level = _log_sum(log_ng, positive)
        to_ng = tl.exp(log_ng - level)
    elif ENTRY == "decoupled":
        to_ng = tl.where(some, 1.0, 0.0)
    for m in tl.static_range(M):
        z = tl.load(z_pos + rows * M + m, mask=there, other=0.0)
        x = level - z
        if ENTRY == "coupled":
            e = tl.exp(-tl.abs(x))
            loss += share * (tl.maximum(x, 0.0) + tl.log(1.0 + e))
            to_ng += share * tl.where(x >= 0, 1.0, e) / (1.0 + e)
        elif ENTRY == "shared":
            loss += share * x
        else:
            loss += tl.where(some, share * x, 0.0)
    for m in tl.static_range(M):
        z = tl.load(z_pos + rows * M + m, mask=there, other=0.0)
        if ENTRY == "coupled":
            e = tl.exp(-tl.abs(level - z))
            to_pair = -share * tl.where(level >= z, 1.0, e) / (1.0 + e)
        elif ENTRY == "shared":
            to_pair = tl.exp(z - level) - share
        else:
            to_pair = tl.where(some, -share, 0.0)
        if DEBIASED:
            own = 1.0
            if M > 1:
                own = (1 + beta) * tl.exp((1 + beta) * z - hard) - beta * tl.exp(beta * z - soft)
            to_pair -= to_ng * taken * own
        tl.store(out_pairs + rows * M + m, to_pair, mask=there)
    tl.store(out_loss + rows, loss, mask=there)
    tl.store(out_on_floor + rows, on_floor.to(tl.float32), mask=there)
    tl.store(out_to_floor + rows, tl.where(on_floor, to_ng, 0.0), mask=there)
    tl.store(out_push + rows, to_ng * back / total, mask=there)
    tl.store(out_draw + rows, -to_ng * back / spread if THROUGH else 0.0 * loss, mask=there)


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
    products, norm_a, norm_c, own, partners, label_a, label_c, item_a, item_c,
    top, push, draw, level, share, out, first_a, last_a, first_c, last_c, step_a, step_c, sharpness, beta,
    OWN: tl.constexpr, M: tl.constexpr, LABELS: tl.constexpr, ITEMS: tl.constexpr,
    HARD: tl.constexpr, THROUGH: tl.constexpr, SYMMETRIC: tl.constexpr, ENTRY: tl.constexpr,
    BA: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient in the logits of a tile: out, which lies as they do.

    top, push, draw, level, share: (A,) as in `_pull`. SYMMETRIC: anchors and candidates are the same rows; the gradient in
    the mirrored logit, which is this one, is added.
    """
    rows = first_a + tl.program_id(1) * BA + tl.arange(0, BA)
    cols = first_c + tl.program_id(0) * BC + tl.arange(0, BC)
    z = _logits(products, norm_a, norm_c, rows, cols, first_a, last_a, first_c, last_c, step_a, step_c, sharpness)
    negative, positive = _relations(
        rows, cols, last_a, last_c, own, partners, label_a, label_c, item_a, item_c, OWN, M, LABELS, ITEMS
    )
    there = rows < last_a
    found = _pull(
        z, negative, positive,
        tl.load(top + rows, mask=there, other=0.0)[:, None], tl.load(push + rows, mask=there, other=0.0)[:, None],
        tl.load(draw + rows, mask=there, other=0.0)[:, None], tl.load(level + rows, mask=there, other=0.0)[:, None],
        tl.load(share + rows, mask=there, other=0.0)[:, None], beta, HARD, THROUGH, ENTRY,
    )  # fmt: skip
    if SYMMETRIC:
        there = cols < last_c
        found += _pull(
            z, negative, positive,
            tl.load(top + cols, mask=there, other=0.0)[None, :], tl.load(push + cols, mask=there, other=0.0)[None, :],
            tl.load(draw + cols, mask=there, other=0.0)[None, :], tl.load(level + cols, mask=there, other=0.0)[None, :],
            tl.load(share + cols, mask=there, other=0.0)[None, :], beta, HARD, THROUGH, ENTRY,
        )  # fmt: skip
    at = (rows - first_a)[:, None] * step_a + (cols - first_c)[None, :] * step_c
    inside = (rows < last_a)[:, None] & (cols < last_c)[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)
