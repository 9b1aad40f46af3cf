"""Rows of Parquet files and folders of them, and of Hugging Face datasets: a folder that `save_to_disk` wrote, or a name on the hub."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from retrieval.errors import UserError, first_line

ROWS = 4096  # read at a time
SPLITS = (
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "unsupervised",
)
NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?$")


def is_table(path: Path) -> bool:
    """Whether a path is one of these: an existing Parquet file, a folder of them, or a dataset's."""
    return (
        path.suffix.lower() == ".parquet"
        or any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
        or bool(_parts(path))
    )


def is_hub_name(path: Path) -> bool:
    """Whether it can be the name of a dataset, owner/name or owner/name:config, and is nothing on disk."""
    return not path.exists() and not path.suffix and bool(NAME.fullmatch(str(path)))


def table_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows in order. Raises UserError for what cannot be read."""
    if path.is_file() or _parts(path):
        return chain.from_iterable(map(_parquet, table_files(path, split)))
    return _dataset(path, split)


def table_files(path: Path, split: str) -> list[Path]:
    """The Parquet or Arrow files in which a table's rows stand, in order. Raises UserError where it has no such split, or where
    that is only a part of a file."""
    if path.is_file():
        return [path]
    parts = _parts(path)
    if not parts:
        return _arrow_files(path, split)
    splits = _by_split(parts)
    if not splits:
        return parts
    if split not in splits:
        raise UserError(f"{path}: has no split {split!r}; choose another split (found: {', '.join(splits)})")
    _refuse_missing_part(path, splits[split])
    return splits[split]


def _by_split(parts: list[Path]) -> dict[str, list[Path]]:
    """The files of each split; none where no name begins with one, for then all of them are one set. Raises UserError where only
    some do."""
    found: dict[str, list[Path]] = {}
    for file in parts:
        found.setdefault(_split_of(file.name), []).append(file)
    if others := found.pop("", []) if len(found) > 1 else []:
        raise UserError(
            f"{others[0]}: beside {', '.join(found)}, this is perhaps a split, perhaps not; give one file, or rename it"
        )
    return {} if "" in found else found


def _split_of(name: str) -> str:
    """The split that a file's name says, "" if none: train.parquet, validation_matched-00000-of-00001.parquet, dev_2.parquet."""
    numbered = re.match(r"(.+)-\d+-of-\d+", name)  # as the hub writes them
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    if word not in SPLITS:
        return ""
    return numbered[1] if numbered else word


def _refuse_missing_part(path: Path, found: list[Path]) -> None:
    """Raise UserError where files say of how many they are, and some are not there."""
    numbered = {re.fullmatch(r"(.+-)(\d+)(-of-(\d+).*)", file.name) for file in found}
    series = {(each[1], len(each[2]), each[3], int(each[4])) for each in numbered if each}
    there = {file.name for file in found}
    for stem, digits, rest, count in series:
        lost = [name for at in range(count) if (name := f"{stem}{at:0{digits}}{rest}") not in there]
        if lost:
            raise UserError(f"{path}: {lost[0]} is missing ({len(lost):,} of {count:,} files); download the rest")


def told_split(path: Path, split: str) -> str:
    """For people: which split of several is read."""
    names = list(_by_split(_parts(path))) if path.is_dir() else []
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
    others = [name for name in names if name != split]
    return f"; split {split} (also there: {', '.join(others)})" if others and split in names else ""


def _parts(path: Path) -> list[Path]:
    """Parquet files in a folder, or in its folder `data`, as the hub has them."""
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            classes = class_names(file.schema_arrow)
            for batch in file.iter_batches(ROWS):
                for row in batch.to_pylist():
                    yield row | {name: as_class(row[name], told) for name, told in classes.items()}
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: is not whole Parquet ({first_line(error)}); download it again") from None


def _arrow_files(path: Path, split: str) -> list[Path]:
    """The files in which a dataset's rows stand, in order. Raises UserError where not all of their rows are asked for."""
    import pyarrow as pa

    loaded, _ = _split(path, split)
    files = [Path(each["filename"]) for each in loaded.cache_files]
    count = 0
    for file in files:
        with pa.memory_map(str(file)) as source:
            count += pa.ipc.open_stream(source).read_all().num_rows
    if not files or count != len(loaded):
        raise UserError(f"{path}: --split {split} is only a part of its files; name a whole split, or save that part")
    return files


def class_names(schema: Any) -> dict[str, list[str]]:
    """What the numbers in some columns of an Arrow or Parquet file stand for, as data sets keep it in what they write."""
    told = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(told).get("info", {}).get("features", {})
    classes = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    labels = {name: kind["names"] for name, kind in classes.items() if kind.get("_type") == "ClassLabel"}
    there = set(schema.names)  # columns may have been taken out since
    return {name: told for name, told in labels.items() if name in there}


def as_class(number: Any, names: list[str]) -> Any:
    """A class by its name. Data sets write −1 where it is not known, and "-" for it where the classes are of inference."""
    if not isinstance(number, int):
        return number
    return names[number] if 0 <= number < len(names) else "-" if "entailment" in names else None


def _dataset(path: Path, split: str) -> Iterator[dict[str, Any]]:
    loaded, classes = _split(path, split)
    for start in range(0, len(loaded), ROWS):
        block = loaded[start : start + ROWS]
        for values in zip(*block.values(), strict=True):
            row = dict(zip(block, values, strict=True))
            yield row | {name: as_class(row[name], told) for name, told in classes.items()}


def _split(path: Path, split: str) -> tuple[Any, dict[str, list[str]]]:
    """The dataset, and what the numbers in some of its columns stand for."""
    import datasets

    loaded = _loaded(path, split)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{path}: has no split {split!r}; choose another split (found: {', '.join(loaded)})")
        loaded = loaded[split]
    for name in [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]:
        loaded = loaded.cast_column(name, datasets.Image(decode=False))  # as they stand there, as Parquet gives them
    return loaded, {name: kind.names for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}


def _loaded(path: Path, split: str) -> Any:
    import datasets

    try:
        if path.is_dir():
            return datasets.load_from_disk(str(path))
        name, _, config = str(path).partition(":")
        _refuse_what_no_hub_gives(name)
        return datasets.load_dataset(name, config or None, split=split)
    except UserError:
        raise
    except Exception as error:  # the library's errors are of many kinds
        raise UserError(f"{path}: cannot load this dataset ({first_line(error)}); check its name, or --split") from None


def _refuse_what_no_hub_gives(name: str) -> None:
    """Raise UserError at once where there is neither such a file nor a hub that answers; loading would try for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError:
        raise UserError(f"{name}: no such file here, and no such dataset on the hub; check the name") from None
    except Exception as error:
        raise UserError(
            f"{name}: no such file here, and the hub of datasets does not answer ({type(error).__name__}); give a file or folder"
        ) from None
