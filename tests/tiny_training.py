"""A small training for tests: forty-eight pairs, and an encoder that `conftest.tiny` made."""

from retrieval.data import Texts
from retrieval.encoder import load_encoder
from retrieval.train.loss import named
from retrieval.train.text import TextConfig, train_text

WORDS = ["card", "bank", "soup", "salt", "star", "night", "road", "tree", "code", "test", "book", "line"]
PAIRS = Texts(
    {
        "anchor": [f"{a} and {b}" for a in WORDS for b in WORDS[:4]],
        "positive": [f"the {a} with {b} " * (1 + len(a) % 3) for a in WORDS for b in WORDS[:4]],
    },
    None,
    None,
    "",
)
LOSS = named("hcl(label_mask=False)")
SETTINGS = dict(steps=6, batch_size=8, lr=1e-3)


def trained(tiny, data=PAIRS, loss=LOSS, watch=None, scratch=None, progress=lambda curve: None, **settings):
    encoder = load_encoder(str(tiny), "cpu")
    config = TextConfig(**{**SETTINGS, **settings})
    curve = train_text(encoder.model, data, config, loss, source="x", watch=watch, scratch=scratch, progress=progress)
    return encoder, curve


def weights(encoder):
    return {key: value.clone() for key, value in encoder.model.state_dict().items()}
