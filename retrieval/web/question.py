"""What a request asks for: queries of one kind, how many results, and among which items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.errors import UserError
from retrieval.neighbors import Floats

MOST_QUERIES = 1_000
MOST_RESULTS = 10_000
LARGEST = 1e300  # of a number, whole ones too
KINDS = ("texts", "vectors", "ids")
LIMITS = ("k", "radius", "labels", "among")


@dataclass(frozen=True)
class Question:
    """Texts, vectors (q, d), ids of items to find the like of, or a picture's bytes: one of these. labels, among: only items with
    one of these labels, of these ids. k: None for ten, or for all within `radius`."""

    texts: Sequence[str] = ()
    vectors: Floats | None = None
    ids: Sequence[str] = ()
    picture: bytes | None = None
    k: int | None = None
    radius: float | None = None
    labels: Sequence[str] = ()
    among: Sequence[str] | None = None


def from_json(body: Any) -> Question:
    """The question of a JSON object. Raises UserError naming the key that is wrong."""
    if not isinstance(body, dict):
        raise UserError('the body is no JSON object; send one such as {"texts": ["…"], "k": 10}')
    unknown = body.keys() - {*KINDS, *LIMITS}
    if unknown:
        raise UserError(f"{min(unknown)}: is no key of a question; there are {', '.join((*KINDS, *LIMITS))}")
    given = [kind for kind in KINDS if kind in body]
    if len(given) != 1:
        raise UserError(f"give one of {', '.join(KINDS)}; {' and '.join(given) or 'none'} given")
    kind = given[0]
    queries = body[kind]
    if not isinstance(queries, list) or not queries:
        raise UserError(f"{kind}: is no list, or an empty one; give up to {MOST_QUERIES:,}")
    if len(queries) > MOST_QUERIES:
        raise UserError(f"{kind}: are {len(queries):,}, more than {MOST_QUERIES:,}; send them in several requests")
    asked: dict[str, Any] = {kind: _vectors(queries) if kind == "vectors" else _strings(kind, queries)}
    for name in ("labels", "among"):
        if name in body:
            asked[name] = _strings(name, body[name])
    return Question(**asked, k=_count(body.get("k")), radius=_number("radius", body.get("radius")))


def from_address(parameters: Sequence[tuple[str, str]], picture: bytes | None = None) -> Question:
    """The question of an address's parameters, `query`, `id`, `k`, `radius`, `label`; or of a picture with these."""
    values: dict[str, list[str]] = {}
    for name, value in parameters:
        values.setdefault(name, []).append(value)
    unknown = values.keys() - {"query", "id", "k", "radius", "label"}
    if unknown:
        raise UserError(f"{min(unknown)}: is no parameter; there are query, id, k, radius and label")
    texts, ids = values.get("query", []), values.get("id", [])
    if sum(map(bool, (texts, ids, picture))) != 1:
        raise UserError("give one kind of query: query or id in the address, or a picture as the body of a POST")
    if len(texts or ids) > MOST_QUERIES:
        raise UserError(f"more than {MOST_QUERIES:,} queries; send more in several requests")
    k, radius = (_read(name, values.get(name), kind) for name, kind in (("k", int), ("radius", float)))
    return Question(
        texts=_strings("query", texts), ids=ids, picture=picture, k=_count(k), radius=_number("radius", radius),
        labels=values.get("label", []),
    )  # fmt: skip


def _read(name: str, values: list[str] | None, kind: type) -> Any:
    if values is None:
        return None
    try:
        return kind(values[-1])
    except ValueError:
        raise UserError(f"{name} {_shown(values[-1])}: give a number") from None


def _strings(name: str, values: Any) -> list[str]:
    """Texts, labels or ids, which may be integers. Raises UserError for what is empty or neither."""
    if not isinstance(values, list):
        raise UserError(f"{name}: is no list; give one of strings")
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool) and name in ("ids", "among")
        if not whole and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{name}: {_shown(value)} is empty or no string; give one")
        if isinstance(value, str) and not _is_text(value):
            raise UserError(
                f"{name}: {_shown(value)} holds half a character, a surrogate without its other half; mend it"
            )
    return [str(value) for value in values]


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:60]}…"


def _vectors(rows: list[Any]) -> Floats:
    try:
        with np.errstate(over="ignore"):  # which makes it infinite
            vectors = np.array(rows, np.float64).astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        vectors = np.empty(0, np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise UserError("vectors: are not rows of as many finite numbers each; give [[0.1, 0.2, …], …]")
    return vectors


def _count(k: Any) -> int | None:
    if k is None:
        return None
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST_RESULTS:
        raise UserError(f"k {_shown(k)}: give a whole number from 1 to {MOST_RESULTS:,}")
    return k


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise UserError(f"{name} {_shown(value)}: give a finite number")
    return float(value)
