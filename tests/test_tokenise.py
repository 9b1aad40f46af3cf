"""Tokenising apart from padding: feature for feature what sentence-transformers makes of the same texts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from retrieval.encode import Encoding, Prepared
from retrieval.encoder import MINILM, load_encoder
from retrieval.tokens import _asks_only_the_tokenizer, as_tokens, pad, tokenise

TEXTS = [
    *("one", "", "  Two  WORDS ", "naïve café 東京 🙂", "a [MASK] b [SEP]", "http://a.b/c.jpg", "line\nbreak\ttab"),
    *("a rather longer text than all the others, for which a short limit leaves no room", "é", "\u200b"),
]


@pytest.fixture
def model():
    return load_encoder(MINILM, "cpu").model


def check(model, prompt=None, texts=TEXTS):
    tokens = tokenise(model, texts, prompt)
    for rows in (range(len(texts)), [7, 3, 0], [1]):
        got = pad(tokens, np.array(rows), model.tokenizer)
        want = model.preprocess([texts[row] for row in rows], prompt=prompt)
        assert got.keys() == want.keys()
        for name, value in want.items():
            if isinstance(value, torch.Tensor):
                assert got[name].dtype == value.dtype and torch.equal(got[name], value), name
            else:
                assert got[name] == value


@pytest.mark.parametrize("prompt", [None, "query: ", "Ein Präfix "])
@pytest.mark.parametrize("most", [256, 8, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_fast_way_gives_the_librarys_features(model, prompt, most, side):
    assert _asks_only_the_tokenizer(model[0])
    model.max_seq_length = most
    model.tokenizer.padding_side = model.tokenizer.truncation_side = side
    check(model, prompt)
    # Leaves its settings behind.
    model.tokenizer(["something else"], padding="max_length", truncation=True, max_length=5)
    check(model, prompt)


def test_types_of_tokens_are_the_tokenizers(model):
    """As XLNet has them: special tokens last, of a type of their own."""
    marks = [("[SEP]", 102), ("[CLS]", 101)]
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:1 [SEP]:1 [CLS]:2", pair=None, special_tokens=marks
    )
    assert 2 in tokenise(model, TEXTS, None).by_token["token_type_ids"]
    check(model, "query: ")


@pytest.mark.parametrize("ends", [True, False])
def test_byte_pairs_without_types(model, ends):
    """As RoBERTa and GPT have them; without special tokens an empty text has no token at all."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(letters | {"<s>": 256, "</s>": 257, "<pad>": 258}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    if ends:
        backend.post_processor = processors.RobertaProcessing(("</s>", 257), ("<s>", 256))
    model[0].processor = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        model_max_length=20,
        model_input_names=["input_ids", "attention_mask"],
    )
    assert _asks_only_the_tokenizer(model[0]) and "token_type_ids" not in tokenise(model, TEXTS, None).by_token
    check(model, "q" if not ends else None, TEXTS if ends else [text or "." for text in TEXTS])


def test_what_asks_more_than_the_tokenizer_is_left_to_the_library(model):
    class Reversing(type(model.tokenizer)):
        def _encode_plus(self, text, *args, **settings):
            return super()._encode_plus([each[::-1] for each in text], *args, **settings)

    model.tokenizer.__class__ = Reversing
    assert not _asks_only_the_tokenizer(model[0])
    check(model, "query: ")
    model.tokenizer.__class__ = Reversing.__base__
    model[0].processing_kwargs = {"text": {"add_special_tokens": False}}
    assert not _asks_only_the_tokenizer(model[0])
    check(model, texts=[text or "." for text in TEXTS])


def test_no_tokens_at_all_are_padded_to_none():
    tokens = as_tokens({"input_ids": [[], [7]], "attention_mask": [[], [1]]})
    tokenizer = SimpleNamespace(pad_token_id=9, pad_token_type_id=0, padding_side="left")
    assert pad(tokens, np.array([0]), tokenizer)["input_ids"].shape == (1, 0)
    assert pad(tokens, np.array([1, 0]), tokenizer)["input_ids"].tolist() == [[7], [9]]


@pytest.mark.parametrize(
    "device,order", [("cuda", ["give 0", "give 1", "wait 0", "give 2", "wait 1", "wait 2"]), ("cpu", None)]
)
def test_a_gpu_is_given_the_next_block_before_the_last_is_waited_for(device, order):
    seen = []

    class Noting(Encoding):
        def __init__(self):
            self.model = SimpleNamespace(device=torch.device(device))

        def start(self, prepared, progress):
            number = prepared.work[0]
            seen.append(f"give {number}")
            return lambda: seen.append(f"wait {number}") or np.full((1, 2), number, np.float32)

    blocks = (lambda number=number: Prepared([], np.arange(1), [number]) for number in range(3))
    assert Noting().run_all(blocks)[:, 0].tolist() == [0, 1, 2]
    assert seen == (order or [f"{what} {number}" for number in range(3) for what in ("give", "wait")])
