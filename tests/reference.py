"""Slow, obvious transcriptions of the papers, and the wrong formulas found in the wild. One anchor at a time, plain floats."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def hcl_anchor(p, negatives, beta, tau_plus, t, detach=None):
    """HCL as published (image/main.py of the paper's code): p and negatives are cosines. exp and all, in Python floats."""
    n = len(negatives)
    pos = math.exp(p / t)
    neg = [math.exp(s / t) for s in negatives]
    weight = [x**beta for x in neg]
    mean_weight = sum(weight) / n
    reweighted = sum(w * x for w, x in zip(weight, neg, strict=True)) / mean_weight
    ng = max((-tau_plus * n * pos + reweighted) / (1 - tau_plus), n * math.exp(-1 / t))
    return -math.log(pos / (pos + ng))


def hcl(anchor, positive, beta, tau_plus, t):
    """Mean over both sides of B pairs of unit vectors, N = 2B − 2."""
    rows = anchor + positive
    count = len(anchor)
    total = 0.0
    for i, row in enumerate(rows):
        partner = (i + count) % (2 * count)
        negatives = [dot(row, other) for j, other in enumerate(rows) if j not in (i, partner)]
        total += hcl_anchor(dot(row, rows[partner]), negatives, beta, tau_plus, t)
    return total / len(rows)


def h_scl(anchor, positive, labels, beta, t):
    """Every same-class item a positive, every other a negative, N = n_i; mean over positives, then over anchors."""
    rows, classes = anchor + positive, list(labels) * 2
    total = 0.0
    for i, row in enumerate(rows):
        negatives = [dot(row, other) for j, other in enumerate(rows) if classes[j] != classes[i]]
        positives = [dot(row, other) for j, other in enumerate(rows) if classes[j] == classes[i] and j != i]
        each = [hcl_anchor(p, negatives, beta, 0.0, t) if negatives else 0.0 for p in positives]
        total += sum(each) / len(each)
    return total / len(rows)


def _wild(anchor, positive, t, negative_term):
    rows, count = anchor + positive, len(anchor)
    cosines = [[dot(a, b) for b in rows] for a in rows]
    total = 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        negatives = [math.exp(cosines[i][j] / t) for j in range(2 * count) if j not in (i, partner)]
        pos = math.exp(cosines[i][partner] / t)
        total += -math.log(pos / (pos + negative_term(i, negatives, pos, cosines)))
    return total / (2 * count)


def wild_row_sums(anchor, positive, beta, tau_plus, t):
    """PyGCL: sums the negatives first and weighs whole rows, so that no single negative is weighed."""
    rows, count = anchor + positive, len(anchor)
    sums = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        sums.append(sum(math.exp(dot(rows[i], rows[j]) / t) for j in range(2 * count) if j not in (i, partner)))
    mean = sum(s**beta for s in sums) / len(sums)

    def term(i, negatives, pos, cosines):
        n = len(negatives)
        reweighted = sums[i] * sums[i] ** beta / mean
        return max((-tau_plus * n * pos + reweighted) / (1 - tau_plus), n * math.exp(-1 / t))

    return _wild(anchor, positive, t, term)


def wild_paper_typo(anchor, positive, beta, tau_plus, t):
    """The paper's pseudocode, which its author calls a typo: weights β·e^z over their mean; and a floor without N."""

    def term(i, negatives, pos, cosines):
        n = len(negatives)
        mean = sum(negatives) / n
        reweighted = sum(beta * x / mean * x for x in negatives)
        return max((-tau_plus * n * pos + reweighted) / (1 - tau_plus), math.exp(-1 / t))

    return _wild(anchor, positive, t, term)


def wild_no_beta_in_normaliser(anchor, positive, beta, tau_plus, t):
    """MedCLIP-SAM: the normaliser lacks β, and masked entries count as e^0 = 1."""

    def term(i, negatives, pos, cosines):
        n = len(negatives)
        padded = [*negatives, 1.0, 1.0]
        return n * sum(x**beta * x for x in padded) / sum(padded)

    return _wild(anchor, positive, t, term)


def wild_unnormalised(anchor, positive, beta, tau_plus, t):
    """DynaCLR: e^{β cos} without any normaliser."""

    def term(i, negatives, pos, cosines):
        return sum(math.exp(beta * math.log(x) * t) * x for x in negatives)

    return _wild(anchor, positive, t, term)


def wild_graph_sign(anchor, positive, beta, tau_plus, t):
    """The paper's graph code (issue 11): the weight falls with similarity, so hard negatives count less."""

    def term(i, negatives, pos, cosines):
        n = len(negatives)
        weight = [x**-beta for x in negatives]
        reweighted = n * sum(w * x for w, x in zip(weight, negatives, strict=True)) / sum(weight)
        return max((-tau_plus * n * pos + reweighted) / (1 - tau_plus), n * math.exp(-1 / t))

    return _wild(anchor, positive, t, term)


WILD = [wild_row_sums, wild_paper_typo, wild_no_beta_in_normaliser, wild_unnormalised, wild_graph_sign]


def family(
    anchors,
    candidates,
    t,
    *,
    weigh,
    own=None,
    positives,
    negatives,
    normalised=True,
    entry="coupled",
    tau_plus=0.0,
    n=None,
):
    """Any method of the family, one anchor and one number at a time, with plain exponentials.

    anchors, candidates: lists of unit vectors. positives(i), negatives(i): columns. weigh(cosines, t, i) → the negatives'
    weights.
    """
    total = 0.0
    for i, a in enumerate(anchors):
        cosines = [dot(a, candidates[j]) for j in negatives(i)]
        p = [dot(a, candidates[j]) for j in positives(i)]
        if not cosines:
            shared = math.log(sum(math.exp(x / t) for x in p))
            total += sum(shared - x / t for x in p) / len(p) if entry == "shared" else 0.0
            continue
        w = weigh(cosines, t, i)
        r = sum(x * math.exp(s / t) for x, s in zip(w, cosines, strict=True))
        count = len(cosines) if n is None else n
        if normalised:
            r *= count / sum(w)
        if tau_plus:
            mass = sum(weigh_positive(x, t, weigh) * math.exp(x / t) for x in p) / sum(
                weigh_positive(x, t, weigh) for x in p
            )
            r = max((r - tau_plus * count * mass) / (1 - tau_plus), count * math.exp(-1 / t))
        every = sum(math.exp(x / t) for x in p)
        for x in p:
            under = r + {"coupled": math.exp(x / t), "decoupled": 0.0, "shared": every}[entry]
            total += (math.log(under) - x / t) / len(p)
    return total / len(anchors)


def weigh_positive(x, t, weigh):
    return weigh([x], t, 0)[0]


def uniform(cosines, t, i):
    return [1.0] * len(cosines)


def exponential(beta):
    return lambda cosines, t, i: [math.exp(beta * s / t) for s in cosines]


def gaussian(mu, sigma):
    """ADNCE: the density without its constant, which cancels."""
    return lambda cosines, t, i: [math.exp(-((s - mu) ** 2) / (2 * sigma**2)) for s in cosines]


def posterior(alpha, beta, tau):
    """BCL as published (image/main.py), by counting."""

    def weigh(cosines, t, i):
        weights = []
        for s in cosines:
            share = sum(other <= s for other in cosines) / len(cosines)
            a = (1 - 2 * alpha) * (1 - tau - tau) + 1e-3
            b = 2 * (alpha * (1 - tau) + (1 - alpha) * tau)
            below = (-b + math.sqrt(b * b + 4 * a * share)) / (2 * a)
            easy, hard = 2 * (1 - below), 2 * below
            true = alpha * easy + (1 - alpha) * hard
            false = (1 - alpha) * easy + alpha * hard
            hard_true = (alpha * (1 - beta) * easy + (1 - alpha) * beta * hard) / (
                alpha * (1 - beta) + (1 - alpha) * beta + 1e-3
            )
            weights.append(hard_true / (true * (1 - tau) + false * tau))
        return weights

    return weigh


def average_precision_at_r(relevant, r):
    """(1/R) Σ_{i ≤ R} P@i · rel_i."""
    total = 0.0
    for i in range(r):
        if relevant[i]:
            total += sum(relevant[: i + 1]) / (i + 1)
    return total / r
