"""Real data that come with the dependencies, for the demo and the tests: handwritten digits, and Python's own manual."""

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.data import Texts
from retrieval.images import Images

# Modules that print, open a window or a browser, or change the process when imported.
_NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "lib2to3", "test", "ensurepip", "__main__"}
# Whose parts count as modules.
_PACKAGES = {"asyncio", "concurrent", "email", "http", "json", "logging", "urllib", "xml"}
MEMBERS = (6, 60)  # fewest and most documented things of a module that is used


def digits() -> Images:
    """1,797 handwritten digits, 8 × 8 grey, ten classes (scikit-learn's copy of the UCI set)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = (data.images * (255 / 16)).round().astype(np.uint8)
    labels = [str(label) for label in data.target.tolist()]
    return Images(pictures, labels, f"{len(labels):,} images, 10 classes")


@dataclass(frozen=True)
class Doc:
    """One documented function or class of the standard library: where, its summary line, and the rest of its text."""

    module: str
    name: str
    summary: str
    body: str


def library_docs() -> list[Doc]:
    """What the running Python says about its own standard library, module by module, in a fixed order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules and names warn when they are touched
        found = _documented()
    counts = Counter(doc.module for doc in found.values())
    low, high = MEMBERS
    kept, used = [], Counter[str]()
    for doc in found.values():
        if counts[doc.module] >= low and used[doc.module] < high:
            used[doc.module] += 1
            kept.append(doc)
    return kept


def _documented() -> dict[str, Doc]:
    """Every documented public function, class and method, by its text, so that each text stands once."""
    found: dict[str, Doc] = {}
    for module in _modules():
        for name in sorted(vars(module)):
            thing = getattr(module, name)
            if name.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing)):
                continue
            if getattr(thing, "__module__", module.__name__) not in (module.__name__, f"_{module.__name__}"):
                continue  # documented where it was defined
            members = {name: thing, **{f"{name}.{member}": value for member, value in _methods(thing)}}
            for path, member in members.items():
                doc = _doc(module.__name__, path, inspect.getdoc(member))
                if doc is not None:
                    found.setdefault(doc.summary + doc.body, doc)
    return found


def _methods(thing: Any) -> list[tuple[str, Any]]:
    """The public methods that a class itself defines."""
    if not inspect.isclass(thing):
        return []
    return [
        (name, value)
        for name, value in sorted(vars(thing).items())
        if not name.startswith("_") and inspect.isroutine(value)
    ]


def _modules() -> list[Any]:
    names = sorted(n for n in sys.stdlib_module_names if not n.startswith("_") and n not in _NOT_IMPORTED)
    modules = []
    for name in names:
        module = _imported(name)
        if module is None:
            continue
        modules.append(module)
        if name in _PACKAGES:
            inner = [info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_")]
            modules += [found for part in inner if (found := _imported(f"{name}.{part}"))]
    return modules


def _imported(name: str) -> Any:
    """The module, or None where it is not built on this platform."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _doc(module: str, name: str, text: str | None) -> Doc | None:
    """Split a docstring into summary and body; None if it is too short to mean something."""
    parts = re.split(r"\n\s*\n", (text or "").strip(), maxsplit=1)
    summary = " ".join(parts[0].split())
    # A bare signature comes first in C modules.
    if re.match(rf"{re.escape(name.rpartition('.')[2])}\(.*\)( ->.*)?$", summary) and len(parts) > 1:
        parts = re.split(r"\n\s*\n", parts[1].strip(), maxsplit=1)
        summary = " ".join(parts[0].split())
    body = " ".join(parts[1].split()) if len(parts) > 1 else ""
    if len(summary) < 20 or not summary.isascii():
        return None
    return Doc(module, name, summary[:300], body[:1000])


def docs_as_texts(docs: list[Doc]) -> Texts:
    """Labelled texts: summary and body together, class = module, id = qualified name."""
    texts = [f"{doc.summary} {doc.body}".strip() for doc in docs]
    labels = [doc.module for doc in docs]
    return Texts(
        {"text": texts},
        labels,
        [f"{doc.module}.{doc.name}" for doc in docs],
        f"{len(docs):,} texts, {len(set(labels)):,} classes",
    )


def docs_as_pairs(docs: list[Doc]) -> Texts:
    """Pairs for training: summary line ↔ body, where there is a body."""
    both = [doc for doc in docs if len(doc.body) >= 40]
    return Texts(
        {"anchor": [doc.summary for doc in both], "positive": [doc.body for doc in both]},
        None,
        None,
        f"{len(both):,} pairs",
    )
