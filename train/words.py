"""Words that captions are altered by: which word may stand for which. The lists are in words.toml, which says how to read them."""

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Which kind of alteration a table of the lists serves. Two kinds need none; see captions.py.
TABLES = {
    "people": "object",
    "animal": "object",
    "object": "object",
    "object-as-is": "object",
    "place": "place",
    "place-as-is": "place",
    "colour": "colour",
    "size": "size",
    "attribute": "attribute",
    "number": "attribute",
    "relation": "relation",
    "action": "relation",
}
KINDS = (*dict.fromkeys(TABLES.values()), "swap-objects", "swap-attributes")
COUNTED = ("people", "animal", "object", "place")
# An article goes by sound, not by letter.
SOUND_OF_A = ("uni", "use", "uten", "uku", "uri", "euro", "one", "ewe")
SOUND_OF_AN = ("hour", "honest", "heir")


class Word(NamedTuple):
    """A word, or several that belong together, as the lists have it.

    head: the first of its group. number: "one" or "many" for nouns that are counted, "either" where both look alike, else "".
    others: heads that it may be replaced by.
    """

    table: str
    category: str
    head: str
    number: str
    others: tuple[str, ...]

    @property
    def kind(self) -> str:
        return TABLES[self.table]


class Words(NamedTuple):
    """known: by how a word is written, in small letters. plurals: of every counted noun that others are replaced by."""

    known: dict[str, Word]
    plurals: dict[str, str]
    longest: int


@cache
def words() -> Words:
    """The lists that ship."""
    return read(Path(__file__).with_name("words.toml").read_text("utf-8"))


def read(text: str) -> Words:
    """Word lists from their text, in the form that words.toml describes. Raises ValueError where a word has two places."""
    known: dict[str, Word] = {}
    plurals: dict[str, str] = {}
    for table, categories in tomllib.loads(text).items():
        for category, line in categories.items():
            left, _, right = line.partition(">")
            groups = [[_forms(word) for word in group.split("/")] for group in left.split(",")]
            targets = [_forms(word) for word in right.split(",")] if right else []
            plurals |= dict(targets) | dict(group[0] for group in groups)
            for group in groups:
                head = group[0][0]
                others = tuple(word for word, _ in targets) or tuple(g[0][0] for g in groups if g is not group)
                for one, many in group:
                    for written, number in _written(one, many, table in COUNTED):
                        if written in known:
                            raise ValueError(f"{written}: stands in {known[written].category} and in {category}")
                        known[written] = Word(table, category, head, number, others)
    return Words(known, plurals, max(len(word.split()) for word in known))


def _forms(word: str) -> tuple[str, str]:
    """Singular and plural."""
    one, _, many = word.strip().partition(":")
    return one, many or plural(one)


def _written(one: str, many: str, counted: bool) -> list[tuple[str, str]]:
    """Every way that a word is written, and the number which that says."""
    if not counted:
        return [(one, "")]
    return [(one, "either")] if one == many else [(one, "one"), (many, "many")]


def plural(noun: str) -> str:
    """A regular plural: of "bus" "buses", of "bunny" "bunnies", of "toy" "toys"."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u"):
        return noun[:-1] + "ies"
    return noun + "s"


def article(word: str) -> str:
    """ "a" or "an", as `word` sounds."""
    word = word.lower()
    if word.startswith(SOUND_OF_AN):
        return "an"
    return "an" if word[:1] in ("a", "e", "i", "o", "u") and not word.startswith(SOUND_OF_A) else "a"
