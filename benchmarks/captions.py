"""Hard negative captions by rule, beside SugarCrepe's wrong captions of the same right ones, which a language model wrote.

    python benchmarks/captions.py

Of every category of SugarCrepe (Hsieh et al., NeurIPS 2023; captions of COCO's validation part, text alone):

    altered     share of the right captions for which a rule of that kind makes something
    of our kind share in which their wrong caption is what such a rule makes: one word of our lists for another of the same kind,
                or the same words in another order; exactly: it is one of all that the rule can make
    words       how many words change, in the mean: ours, theirs
    cosine      between right and wrong caption, MiniLM, medians: ours, theirs. Harder is nearer to 1
    blind       how often logistic regression on MiniLM's embeddings tells the right caption from the wrong one without a picture,
                on pairs that it has not seen: .5 would be chance, so that only a picture helps. Ours, theirs, and with how many pairs

No rule adds words, so there are only their figures for what is added. Needs RETRIEVAL_DATA, the folder of data sets.
"""

import json
import os
import re
import statistics
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from machine import header
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.train.captions import KINDS, altered, coverage, edits, read, rewritten, same
from retrieval.train.words import words

DATA = Path(os.environ.get("RETRIEVAL_DATA", ".")) / "sugar-crepe" / "data"
KINDS_OF = {
    "replace_obj": ["object", "place"],
    "replace_att": ["colour", "size", "attribute"],
    "replace_rel": ["relation"],
    "swap_obj": ["swap-objects"],
    "swap_att": ["swap-attributes"],
    "add_obj": [],
    "add_att": [],
}
PAIRS = 1000  # for cosines and the blind test, at most
Pair = tuple[str, str]


def changed(right: str, wrong: str) -> list[tuple[list[str], list[str]]]:
    """What was taken out and what was put in its place, run by run of words; "an" counts as "a"."""
    a, b = same(right).split(), same(wrong).split()
    return [(a[i:j], b[k:m]) for tag, i, j, k, m in SequenceMatcher(None, a, b, False).get_opcodes() if tag != "equal"]


def words_changed(pairs: list[Pair]) -> float:
    return statistics.mean(sum(max(len(out), len(put)) for out, put in changed(*pair)) for pair in pairs)


def of_our_kind(right: str, wrong: str, kinds: list[str]) -> bool:
    if kinds[0].startswith("swap"):
        return sorted(same(right).split()) == sorted(same(wrong).split())
    runs, known = changed(right, wrong), words().known
    if len(runs) != 1:
        return False
    out, put = (known.get(" ".join(run)) for run in runs[0])
    return out is not None and put is not None and out.kind == put.kind and out.kind in kinds


def exactly_ours(right: str, wrong: str, kinds: list[str]) -> bool:
    known = read(right)
    return same(wrong) in {same(rewritten(known, edit)) for kind in kinds for edit in edits(known, kind)}


def ours_of(right: list[str], kinds: list[str]) -> list[Pair]:
    """Of each right caption that a rule can alter, one wrong caption."""
    return [(text, wrong) for text in right for _, wrong in altered(text, kinds=kinds)]


def blind(right: np.ndarray, wrong: np.ndarray) -> float:
    """How often pairs are told apart, in five folds by pairs. right, wrong: (n, d)."""
    gaps = right - wrong
    signs = np.where(np.arange(len(gaps)) % 2, 1, -1)
    model = LogisticRegression(C=10, fit_intercept=False, max_iter=1000)
    return float((cross_val_predict(model, gaps * signs[:, None], signs, cv=5) == signs).mean())


def judged(encoder: Encoder, pairs: list[Pair], random: np.random.Generator) -> tuple[float, float, int]:
    """Median cosine, blind accuracy, pairs."""
    some = [pairs[i] for i in random.permutation(len(pairs))[:PAIRS]]
    # Theirs begin with a capital and end with a stop more often than COCO's captions: not what is asked.
    right, wrong = (encoder.encode([re.sub(r"[\s.]+$", "", text.lower()) for text in side]) for side in zip(*some, strict=True))  # fmt: skip
    return float(np.median((right * wrong).sum(1))), blind(right, wrong), len(some)


def main() -> None:
    print(header())
    encoder, random = load_encoder(MINILM, "cpu"), np.random.default_rng(0)
    lists = words().known.values()
    print(f"{len(lists):,} forms of {len({(w.category, w.head) for w in lists}):,} groups of words in {len({w.category for w in lists})} categories\n")  # fmt: skip
    print(f"{'':12} {'pairs':>6} {'altered':>8} {'of our kind':>12} {'exactly':>8} {'words':>12} {'cosine':>13} {'blind':>24}")  # fmt: skip
    rights, examples = set(), []
    for name, kinds in KINDS_OF.items():
        rows = json.loads((DATA / f"{name}.json").read_text("utf-8")).values()
        theirs = [(row["caption"], row["negative_caption"]) for row in rows]
        rights |= {right for right, _ in theirs}
        cosine, told, count = judged(encoder, theirs, random)
        if not kinds:
            print(f"{name:12} {len(theirs):6,} {'':30} {'':>5} {words_changed(theirs):6.1f} {'':>6} {cosine:6.3f} {'':>9} {told:6.3f} ({count:,})")  # fmt: skip
            continue
        ours = ours_of([right for right, _ in theirs], kinds)
        like = statistics.mean(of_our_kind(*pair, kinds) for pair in theirs)
        exact = statistics.mean(exactly_ours(*pair, kinds) for pair in theirs)
        our_cosine, our_told, our_count = judged(encoder, ours, random)
        print(
            f"{name:12} {len(theirs):6,} {len(ours) / len(theirs):8.1%} {like:12.1%} {exact:8.1%} {words_changed(ours):5.1f} "
            f"{words_changed(theirs):6.1f} {our_cosine:6.3f} {cosine:6.3f} {our_told:9.3f} {told:6.3f} ({our_count:,}, {count:,})"
        )
        examples += [(name, *ours[i], dict(theirs)[ours[i][0]]) for i in random.permutation(len(ours))[:4]]
    start = time.perf_counter()
    found = coverage(rights)
    each = (time.perf_counter() - start) / len(rights)
    print(f"\n{len(rights):,} different right captions: {', '.join(f'{kind} {found[kind] / len(rights):.1%}' for kind in KINDS)}; none {found['none']}")  # fmt: skip
    start = time.perf_counter()
    several = [len(altered(right, count=4)) for right in rights]
    print(f"four asked for: {statistics.mean(several):.2f} in the mean, {sum(n < 4 for n in several)} with fewer; {(time.perf_counter() - start) / len(rights) * 1e3:.2f} ms a caption, {each * 1e3:.2f} ms to look")  # fmt: skip
    print()
    for name, right, mine, their in examples:
        print(f"{name}: {right.strip()}\n    ours:   {mine.strip()}\n    theirs: {their.strip()}")


if __name__ == "__main__":
    main()
