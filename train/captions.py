"""Hard negative captions: a caption with one thing changed, so that it is no longer true of its picture.

By rule, from word lists (words.py), in the kinds of Rösch et al. (2024, arXiv 2403.02875: object, colour, size, location) and of
SugarCrepe (Hsieh et al., NeurIPS 2023: objects, attributes and relations replaced, objects and attributes swapped):

    object, place             a noun by another of its category, in the same number
    colour, size, attribute   a word by one that contradicts it
    relation                  a preposition or verb by one that contradicts it
    swap-objects              two nouns change places; not where that says the same, as around "and"
    swap-attributes           the attributes of two nouns change places
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from retrieval.errors import UserError

from .words import KINDS, Word, article, words

TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
STOP = re.compile(r"[,;.&/]")
ARTICLES = ("a", "an")
PRONOUNS = {"he", "she", "him", "her", "his", "hers", "himself", "herself"}
NOUNS = {"people", "animal", "object", "object-as-is", "place", "place-as-is"}
# Nouns that change places are of one of these sorts: "a shirt in a man" is no hard negative.
SORTS = {"people": "alive", "animal": "alive", "object": "thing", "place": "place"}
ADJECTIVES = {"colour", "size", "attribute"}
WORN = {"upper", "on-head", "on-body", "on-feet", "legwear", "eyes"}
# "A dog with a cat" is "a cat with a dog".
EITHER_WAY = {",", "and", "or", "with", "near", "next to", "between", "being"}
EITHER_WAY |= {"meeting", "facing", "kissing", "hugging", "fighting", "playing", "talking", "touching"}
REACH = 4  # words from a preposition to its noun, at most


class Span(NamedTuple):
    """Words first … last − 1 of a caption, which the lists have as `word`. many: whether a noun stands for several."""

    first: int
    last: int
    word: Word
    many: bool


class Caption(NamedTuple):
    """A caption, its words in small letters, where each lies in the text, and what the lists know of it."""

    text: str
    words: list[str]
    places: list[tuple[int, int]]
    spans: list[Span]


class Edit(NamedTuple):
    """What is put in place of which words. rank: how many commoner words there are to put there."""

    parts: tuple[tuple[Span, str], ...]
    rank: int = 0


Allowed = Callable[[Caption, Span, Span], bool]


def altered(
    caption: str, *, kinds: Sequence[str] = KINDS, count: int = 1, seed: int = 0, true: Collection[str] = ()
) -> list[tuple[str, str]]:
    """At most `count` hard negatives of a caption, each with its kind; fewer, or none, where the lists know too little of it.

    true: other captions of the same picture. None of them is returned, and no noun or attribute put in that one of them has.
    Kinds take turns, in random order. What comes depends on the caption, `true`, kinds, count and seed alone, not on what was
    altered before, so that processes and restarts agree. Raises UserError for an unknown kind.
    """
    _refuse_unknown(kinds)
    random = np.random.default_rng([seed, int.from_bytes(blake2b(caption.encode(), digest_size=8).digest())])
    known = read(caption)
    ways = {kind: edits(known, kind, true) for kind in kinds}
    queues = [(kind, _drawn(found, random)) for kind, found in ways.items()]
    queues = [queues[i] for i in random.permutation(len(queues))]
    taken, result = {same(text) for text in (caption, *true)}, list[tuple[str, str]]()
    while any(queue for _, queue in queues) and len(result) < count:
        for kind, queue in queues:
            if not queue or len(result) == count:
                continue
            text = rewritten(known, queue.pop(0))
            if same(text) not in taken:
                taken.add(same(text))
                result.append((kind, text))
    return result


def _drawn(found: list[Edit], random: np.random.Generator) -> list[Edit]:
    """In random order, common words mostly first: by 1 over the rank, as words are in texts, so that they do not betray themselves."""
    keys = random.exponential(size=len(found)) * [edit.rank + 1 for edit in found]
    return [found[i] for i in np.argsort(keys)]


def coverage(captions: Iterable[str], kinds: Sequence[str] = KINDS) -> Counter[str]:
    """How many of the captions each kind can alter, and under "none" how many no kind can."""
    _refuse_unknown(kinds)
    found: Counter[str] = Counter()
    for caption in captions:
        able = [kind for kind in kinds if edits(read(caption), kind)]
        found.update(able or ["none"])
    return found


def _refuse_unknown(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"kind {unknown[0]}: there is no such alteration of captions; known are {', '.join(KINDS)}")


def same(text: str) -> str:
    """Equal for captions that say the same words, whatever their capitals, punctuation and form of "a"."""
    return " ".join("a" if word in ARTICLES else word for word in (m.group().lower() for m in TOKEN.finditer(text)))


def read(caption: str) -> Caption:
    """Find the words that the lists know, the longest first: "hot dog" before "dog"."""
    lists = words()
    found = list(TOKEN.finditer(caption))
    tokens, places = [m.group().lower() for m in found], [m.span() for m in found]
    spans, first = list[Span](), 0
    while first < len(tokens):
        for last in range(min(first + lists.longest, len(tokens)), first, -1):
            word = lists.known.get(" ".join(tokens[first:last]))
            apart = any(caption[places[i][1] : places[i + 1][0]].strip() for i in range(first, last - 1))
            if word is not None and not apart and not _is_name(caption, places, first):
                spans.append(Span(first, last, word, _is_many(word, tokens, first)))
                break
        else:
            last = first + 1
        first = last
    return Caption(caption, tokens, places, spans)


def _is_name(caption: str, places: list[tuple[int, int]], first: int) -> bool:
    """A word with a capital amid small ones: "Frito Lay" lies nowhere."""
    written = [caption[start:end] for start, end in places]
    if not first or not written[first][0].isupper() or written[first].isupper():
        return False
    capitals = sum(word[0].isupper() for word in written)
    return 2 * capitals < len(written) and "." not in caption[places[first - 1][1] : places[first][0]]


def _is_many(word: Word, tokens: list[str], first: int) -> bool:
    """Of "sheep" and its like the article tells: one in "a sheep" and "a white sheep", several in all else."""
    if word.number != "either":
        return word.number == "many"
    before = tokens[max(0, first - 2) : first]
    return not (before and (before[-1] in ARTICLES or (before[0] in ARTICLES and "of" not in before)))


def edits(caption: Caption, kind: str, true: Collection[str] = ()) -> list[Edit]:
    """Every way to alter a caption in one kind."""
    if kind == "swap-objects":
        return _swaps(caption, [s for s in caption.spans if s.word.table in SORTS], _can_swap_nouns)
    if kind == "swap-attributes":
        return _swaps(caption, [s for s in caption.spans if s.word.kind in ADJECTIVES], _can_swap_attributes)
    said = {span.word.head for text in (caption, *map(read, true)) for span in text.spans}
    found, plurals = list[Edit](), words().plurals
    for span in caption.spans:
        if span.word.kind != kind or not _replaceable(caption, span):
            continue
        others = span.word.others if kind == "relation" else [other for other in span.word.others if other not in said]
        found += [Edit(((span, plurals[other] if span.many else other),), rank) for rank, other in enumerate(others)]
    return found


def _replaceable(caption: Caption, span: Span) -> bool:
    """Whether the words around allow another word here."""
    table, tokens = span.word.table, caption.words
    if table == "people":
        return not PRONOUNS & set(tokens)  # "a woman holding his bat" gives itself away
    if table.endswith("-as-is"):  # not "a tea", nor "two goggles of wine"
        return tokens[span.first - 1 : span.first] not in (["a"], ["an"]) and tokens[span.last : span.last + 1] != [
            "of"
        ]
    if table == "relation":
        noun = _noun_after(caption, span)
        if noun is None or noun.first - span.last >= REACH or _stops(caption, span.last, noun.first):
            return False
        return not (span.word.head == "in" and noun.word.category in WORN)  # "behind a red shirt"
    return True


def _stops(caption: Caption, first: int, last: int) -> bool:
    """Whether a comma or its like stands before one of the words first … last."""
    return any(
        STOP.search(caption.text[caption.places[i - 1][1] : caption.places[i][0]]) for i in range(first, last + 1)
    )


def _noun_after(caption: Caption, span: Span) -> Span | None:
    """The first noun that the lists know after a span and before another preposition or verb."""
    for other in caption.spans:
        if other.first >= span.last and (other.word.table in NOUNS or other.word.kind == "relation"):
            return other if other.word.table in NOUNS else None
    return None


def _swaps(caption: Caption, spans: list[Span], allowed: Allowed) -> list[Edit]:
    """Pairs of spans that may change places. A word that stands in the caption twice stays."""
    heads = Counter(span.word.head for span in spans)
    alone = [span for span in spans if heads[span.word.head] == 1]
    pairs = [(a, b) for i, a in enumerate(alone) for b in alone[i + 1 :] if allowed(caption, a, b)]
    return [Edit(((a, _surface(caption, b)), (b, _surface(caption, a)))) for a, b in pairs]


def _can_swap_nouns(caption: Caption, a: Span, b: Span) -> bool:
    """Of one sort and number, and it says something else the other way round, by what links them or by their attributes."""
    if SORTS[a.word.table] != SORTS[b.word.table] or a.many != b.many:
        return False
    link = _link(caption, a, b)
    if link in ("", "of"):
        return False
    return link not in EITHER_WAY or _attribute(caption, a) != _attribute(caption, b)


def _link(caption: Caption, a: Span, b: Span) -> str:
    """What stands last between two nouns of a comma, a preposition, a verb that is known as one, and a word such as "and"; else ""."""
    linked = {
        i: span.word for span in caption.spans for i in range(span.first, span.last) if span.word.kind == "relation"
    }
    for i in range(b.first, a.last - 1, -1):
        if i < b.first and i in linked:
            return linked[i].head
        word = caption.words[i]
        if i < b.first and (word in EITHER_WAY or word == "of" or word.endswith("ing")):
            return word
        if _stops(caption, i, i):
            return ","
    return ""


def _attribute(caption: Caption, noun: Span) -> str:
    """The attribute that stands before a noun, or ""."""
    return next((s.word.head for s in caption.spans if s.last == noun.first and s.word.table in ADJECTIVES), "")


def _can_swap_attributes(caption: Caption, a: Span, b: Span) -> bool:
    """Of different nouns, and neither comes to stand beside an attribute of another sort than its own."""
    mine, other = _noun_after(caption, a), _noun_after(caption, b)
    if mine is None or other is None or mine.first > b.first or mine.word.head == other.word.head:
        return False
    if "number" in (a.word.table, b.word.table) or a.word.table == b.word.table:
        return a.word.table == b.word.table
    edges = {i for span in caption.spans if span.word.kind in ADJECTIVES for i in (span.first - 1, span.last)}
    return not edges & {a.first, a.last - 1, b.first, b.last - 1}


def _surface(caption: Caption, span: Span) -> str:
    """The words of a span as they are written, in small letters unless they are an abbreviation."""
    text = caption.text[caption.places[span.first][0] : caption.places[span.last - 1][1]]
    return text if text.isupper() and not caption.text.isupper() else text.lower()


def rewritten(caption: Caption, edit: Edit) -> str:
    """The caption with words put in place of others, with their capitals, and "a" or "an" before them as they sound."""
    text = caption.text
    for span, new in sorted(edit.parts, key=lambda part: -part[0].first):
        start, end = caption.places[span.first][0], caption.places[span.last - 1][1]
        before = text[:start]
        if span.first and caption.words[span.first - 1] in ARTICLES:
            begin, stop = caption.places[span.first - 1]
            if not text[stop:start].strip():
                before = text[:begin] + _cased(article(new), text[begin:stop], caption.text) + text[stop:start]
        text = before + _cased(new, text[start:end], caption.text) + text[end:]
    return text


def _cased(new: str, old: str, caption: str) -> str:
    """`new` with the capitals of `old`: all of them where the whole caption is in capitals, or the first."""
    if caption.isupper():
        return new.upper()
    starts = old[:1].isupper() and (not old.isupper() or len(old) == 1 or caption.lstrip().startswith(old))
    return new[:1].upper() + new[1:] if starts else new
