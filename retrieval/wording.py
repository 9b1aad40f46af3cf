"""Words of what is told."""


def plural(count: int, what: str) -> str:
    """ "1 file", "2 files", "2 queries", "2 classes"."""
    many = what[:-1] + "ies" if what.endswith("y") else what + ("es" if what.endswith("s") else "s")
    return f"{count:,} {what if count == 1 else many}"
