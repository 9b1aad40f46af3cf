"""The whole family the plain way: full matrices, unshifted exponentials, autograd. Right in float64 at ordinary temperatures."""

from dataclasses import replace

import torch
from torch.nn.functional import normalize


def plain_loss(
    anchor,
    positive,
    negative=None,
    *,
    labels=None,
    items=None,
    guide=None,
    weigh,
    t,
    through=False,
    normalised=True,
    entry="coupled",
    tau_plus=0.0,
    directions="symmetric",
    within=True,
    rule=None,
    published_count=False,
    own_negatives=False,
    bias=0.0,
):
    """weigh(cosines, own_explicit) → weights of all candidates. rule(similarities, own) → likely false negatives."""
    views = [normalize(anchor, dim=1), *normalize(positive if positive.ndim == 3 else positive[None], dim=2)]
    pairs = len(anchor)
    extra = [] if negative is None else [normalize(negative, dim=1)]
    if within:
        sides = [list(range(len(views)))] if directions == "symmetric" else [[0]]
        jobs = [(s, list(range(len(views))), extra) for s in sides]
    else:
        jobs = [([0], list(range(1, len(views))), extra)]
        if directions == "symmetric":
            jobs += [([v], [u for u in range(len(views)) if u != v], []) for v in range(1, len(views))]
    means = []
    for sides, among, more in jobs:
        rows = torch.cat([views[v] for v in sides])
        columns = torch.cat([views[v] for v in among] + more)
        who = [(v, i) for v in sides for i in range(pairs)]
        what = [(v, i) for v in among for i in range(pairs)] + [(None, k) for k in range(len(negative) if more else 0)]
        cosines = rows @ columns.T
        guided = (
            None if guide is None else torch.cat([guide[v] for v in sides]) @ torch.cat([guide[v] for v in among]).T
        )
        losses, terms = [], {}
        for r, (v, i) in enumerate(who):
            pos, neg, explicit = [], [], []
            for c, (u, j) in enumerate(what):
                mine = u is not None and j == i
                same = u is not None and (mine or (labels is not None and labels[i] == labels[j]))
                if mine and u == v:
                    continue
                if same:
                    pos.append(c)
                    continue
                if items is not None and u is not None and items[v * pairs + i] == items[u * pairs + j]:
                    continue
                if own_negatives and u is None and j % pairs != i:
                    continue
                if rule is not None:
                    own = next(k for k, (u2, j2) in enumerate(what) if j2 == i and u2 not in (v, None))
                    judge = cosines.detach() if guided is None else guided
                    if rule(judge[r, c], judge[r, own]):
                        continue
                neg.append(c)
                explicit.append(u is None and j % pairs == i)
            p = cosines[r, pos] / t
            if entry == "sigmoid":
                mine = torch.log1p(torch.exp(-p - bias)).sum()
                losses.append(mine + torch.log1p(torch.exp(cosines[r, neg] / t + bias)).sum())
                continue
            if not neg:
                losses.append((p.exp().sum().log() - p).mean() if entry == "shared" else 0 * p.sum())
                continue
            s = cosines[r, neg]
            w = weigh(s if through else s.detach(), torch.tensor(explicit))
            big_r = (w * (s / t).exp()).sum()
            n = len(what) - 2 if published_count else len(neg)
            if normalised:
                big_r = big_r * n / w.sum()
            if tau_plus:
                wp = weigh(cosines[r, pos], torch.zeros(len(pos), dtype=torch.bool))
                mass = (wp * p.exp()).sum() / wp.sum()
                floor = len(neg) * torch.exp(p.new_tensor(-1 / t))
                big_r = torch.clamp((big_r - tau_plus * len(neg) * mass) / (1 - tau_plus), min=floor)
            if entry == "joint":  # both anchors of a pair, of whom the other may come later
                terms[v, i] = (big_r, p)
                continue
            under = {"coupled": big_r + p.exp(), "decoupled": big_r, "shared": big_r + p.exp().sum()}[entry]
            losses.append((under.log() - p).mean())
        for i in range(pairs if terms else 0):
            total = sum(terms[v, i][0] for v in sides)
            losses += [((total + len(sides) * terms[v, i][1].exp()).log() - terms[v, i][1]).mean() for v in sides]
        means.append(torch.stack(losses).mean())
    return torch.stack(means).mean()


T = 0.3
LABELS = {"labels": [0, 1, 0, 2, 2, 1, 0]}


def data(seed=0, pairs=7, dim=5, positives=1, negatives=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(pairs, dim, generator=generator, dtype=torch.float64)
    p = a + 0.6 * torch.randn(positives, pairs, dim, generator=generator, dtype=torch.float64)
    n = torch.randn(negatives, dim, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in (a, p if positives > 1 else p[0].clone(), *([n] if negatives else []))]


def both(found, inputs):
    """Value and gradients."""
    return [found.detach(), *torch.autograd.grad(found, inputs)]


def at_temperature(config, t):
    return replace(config, temperature=t)
