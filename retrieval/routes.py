"""Encoders of several kinds of items: which of their modules reads which kind."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def reader(model: "SentenceTransformer", kind: str) -> Any:
    """The module that prepares "text" or "image": the first, or behind sentence-transformers' Router the first of the kind's route."""
    first: Any = model[0]
    routes = getattr(first, "sub_modules", None)
    if routes is None:
        return first
    named = [first.route_mappings.get((None, kind)), kind, first.default_route, *routes]
    modules = [routes[name][0] for name in named if name in routes]
    return next((module for module in modules if kind in getattr(module, "modalities", ())), first)
