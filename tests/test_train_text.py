"""Training an encoder for real, small: kills, several processes, parts of an encoder, and what each option promises."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_training import LOSS, PAIRS, SETTINGS, WORDS, trained, weights

from retrieval.data import Texts, text_codes
from retrieval.encoder import load_encoder
from retrieval.errors import UserError
from retrieval.train import adapt
from retrieval.train.batches import Drawing, Pairs, Plan
from retrieval.train.collate import Collator, Shares, Source
from retrieval.train.loss import LossConfig, contrastive_loss, named
from retrieval.train.text import TextConfig, _sources, plan_batches, train_text
from retrieval.train.whole import Watch

pytestmark = pytest.mark.slow


def moved(tiny, encoder):
    """The parameters that are not what they were."""
    before = weights(load_encoder(str(tiny), "cpu"))
    return {key for key, value in weights(encoder).items() if not torch.equal(value, before[key])}


def test_the_seed_decides_bit_for_bit(tiny):
    one, other = (trained(tiny)[0].fingerprint for _ in range(2))
    assert one == other != trained(tiny, seed=1)[0].fingerprint


def test_last_layers_alone_learn(tiny):
    encoder, _ = trained(tiny, last_layers=1)
    assert moved(tiny, encoder) and all("layer.2." in key or "pooler" in key for key in moved(tiny, encoder))
    with pytest.raises(UserError, match="--last-layers 9: the encoder has 3"):
        trained(tiny, last_layers=9)
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())


def test_lora_is_merged_and_changes_only_linear_layers(tiny, tmp_path):
    encoder, _ = trained(tiny, lora=2)
    changed = moved(tiny, encoder)
    assert changed and all(
        key.endswith("weight") and "LayerNorm" not in key and "embeddings" not in key for key in changed
    )
    before = weights(load_encoder(str(tiny), "cpu"))
    after = weights(encoder)
    assert before.keys() == after.keys()
    key = next(key for key in changed if "query" in key)
    assert torch.linalg.matrix_rank(after[key] - before[key], atol=1e-6) <= 2
    encoder.model.save_pretrained(str(tmp_path / "plain"))
    assert SentenceTransformer(str(tmp_path / "plain"), device="cpu").encode(["a"]).shape == (1, 32)


def test_layers_below_learn_more_slowly(tiny):
    model = load_encoder(str(tiny), "cpu").model
    rates = adapt.learning_rates(model, 1.0, 0.5)
    assert sorted(rates.values()) == [0.125, 0.25, 0.5, 1.0]
    encoder, _ = trained(tiny, layer_decay=0.01)
    before, after = weights(load_encoder(str(tiny), "cpu")), weights(encoder)
    steps = [
        max((after[k] - before[k]).abs().max() for k in after if f"layer.{n}." in k and k.endswith("dense.weight"))
        for n in range(3)
    ]
    assert steps[0] < 0.05 * steps[1] < 0.05 * 0.05 * steps[2] * 2


def test_the_best_is_kept_and_patience_ends_training(tiny, tmp_path):
    values = iter([0.1, 0.9, 0.2, 0.3, 0.4])
    seen = []

    def judge(model, step):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"map@r": next(values)}

    encoder, curve = trained(tiny, steps=10, watch=Watch(judge, 1, "map@r", patience=2), scratch=tmp_path)
    assert len(seen) == len(curve) == 4
    assert all(torch.equal(value, seen[1][key]) for key, value in weights(encoder).items())


@pytest.mark.parametrize("steps_before", [3, 4], ids=["while it waits", "at its end"])
def test_patience_goes_on_where_a_killed_training_stopped(steps_before, tiny, tmp_path):
    """The second judgement is the best, two more end it; killed before or after the last of them, none comes after."""
    seen = []

    def judge(model, step):
        seen.append((step, {key: value.clone() for key, value in model.state_dict().items()}))
        return {"map@r": 1 / (1 + abs(step - 2))}

    def interrupted(curve):
        if len(curve) > steps_before:
            raise InterruptedError

    options = {"steps": 10, "watch": Watch(judge, 1, "map@r", patience=2), "scratch": tmp_path}
    if steps_before == 3:
        with pytest.raises(InterruptedError):
            trained(tiny, progress=interrupted, **options)
    else:
        trained(tiny, **options)
    assert [step for step, _ in seen] == list(range(1, steps_before + 1))
    encoder, curve = trained(tiny, **options)
    assert [step for step, _ in seen] == [1, 2, 3, 4] and len(curve) == 4
    assert all(torch.equal(value, seen[1][1][key]) for key, value in weights(encoder).items())


def test_a_constant_rate_warms_up_too(tiny):
    warm, cold = (weights(trained(tiny, schedule="constant", warmup=share)[0]) for share in (1.0, 0.0))
    assert any((warm[key] - cold[key]).abs().max() > 1e-4 for key in warm)


def test_the_last_step_is_judged_too(tiny, tmp_path):
    values = iter([0.1, 0.2, 0.3])
    seen = []

    def judge(model, step):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"map@r": next(values)}

    encoder, _ = trained(tiny, steps=5, watch=Watch(judge, 2, "map@r"), scratch=tmp_path)
    assert len(seen) == 3 and all(torch.equal(value, seen[2][key]) for key, value in weights(encoder).items())


def test_few_texts_train_some_steps_unless_epochs_are_asked_for(tiny):
    plans = [plan_batches(PAIRS, TextConfig(), LOSS, "x")]
    assert TextConfig().total_steps(plans) == 1 and TextConfig(step_bounds=(100, None)).total_steps(plans) == 100
    assert TextConfig(steps=7, step_bounds=(100, None)).total_steps(plans) == 7
    many = [plan_batches(PAIRS, TextConfig(epochs=500), LOSS, "x")]
    assert TextConfig(step_bounds=(20, 30)).total_steps(many) == 30 < TextConfig().total_steps(many)


def test_judging_from_the_command_line(command, run_cli, pairs_file, tmp_path, monkeypatch):
    words = [*command, "--eval-data", pairs_file, "--eval-every", 2, "--patience", 3, "--output", tmp_path / "run"]
    result = json.loads(run_cli(*words, "--json").stdout)
    judged = result["metrics"]["held-out"]["metrics"]
    assert set(judged) == {"r@1", "mrr", "r@10"} and result["steps"] == 6
    with monkeypatch.context() as patch:  # before any step
        patch.setattr("retrieval.train.fit.train_whole", None)
        error = run_cli(*words, "--value", "nonsense", "--overwrite", code=2).stderr
    assert "--value nonsense: is not measured here; known are r@1" in error
    words[words.index("--eval-every") + 1] = 9
    assert "--eval-every 9: training has 6 steps" in run_cli(*words, "--overwrite", code=2).stderr


def test_accumulated_batches_are_their_mean(tiny):
    """Two batches a step, at one learning rate, move the weights once for both."""
    encoder, curve = trained(tiny, steps=1, accumulate=2)
    assert len(curve) == 2 and moved(tiny, encoder)
    plan = plan_batches(PAIRS, TextConfig(**{**SETTINGS, "accumulate": 2}), LOSS, "x")
    assert plan.steps == 6
    sources = _sources(encoder.model, [PAIRS], [plan], None, TextConfig(**SETTINGS))
    assert len(list(Shares(sources, TextConfig(**SETTINGS).total_steps([plan]) * 2))) == 12


def test_the_time_left_does_not_count_what_comes_before_the_first_step(command, run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.cli.output.SECONDS_A_LINE", -1)
    told = run_cli(*command, "--head", "--output", tmp_path / "run").stderr
    assert re.search(r"^train 1/\d+  loss", told, re.M) and re.search(
        r"^train 2/\d+, \S+/s, \d+ s left  loss", told, re.M
    )


def test_steps_are_told_not_batches(command, run_cli, tmp_path):
    output = tmp_path / "run"
    told = run_cli(*command, "--accumulate", 3, "--output", output).stdout
    assert f"{output}: trained 6 steps of 3 batches, loss" in told
    assert "for 6 steps, starting" in (output / "README.md").read_text()
    assert json.loads((output / "manifest.json").read_text())["steps"] == 6
    assert len((output / "run" / "curve.csv").read_text().splitlines()) == 1 + 18
    assert json.loads(run_cli(*command, "--accumulate", 2, "--output", tmp_path / "a", "--json").stdout)["steps"] == 6


def test_bfloat16_keeps_float32_weights(tiny):
    encoder, half = trained(tiny, compute="bfloat16")
    _, plain = trained(tiny)
    assert {value.dtype for value in weights(encoder).values() if value.is_floating_point()} == {torch.float32}
    assert half[0]["loss"] != plain[0]["loss"] == pytest.approx(half[0]["loss"], rel=0.02)


def test_matryoshka_dimensions_learn_too(tiny):
    def fit(encoder, d):
        a, p = (torch.from_numpy(encoder.encode(list(column))[:, :d]) for column in PAIRS.columns.values())
        return contrastive_loss(a, p, config=LOSS).loss.item()

    with_dims, without = (trained(tiny, steps=40, dims=dims)[0] for dims in ((4,), ()))
    assert fit(with_dims, 4) < fit(without, 4) - 0.02
    with pytest.raises(UserError, match="--dims 64: the encoder has 32"):
        trained(tiny, dims=(64,))
    with pytest.raises(UserError, match="remembers whole embeddings"):
        trained(tiny, dims=(4,), loss=named("infonce(memory=20, label_mask=False)"))


def test_prompts_are_trained_with_and_kept(tiny, tmp_path):
    encoder, _ = trained(tiny, query_prompt="query: ", document_prompt="passage: ")
    assert encoder.model.prompts["query"] == "query: " and encoder.model.prompts["document"] == "passage: "
    encoder.model.save_pretrained(str(tmp_path / "e"))
    again = load_encoder(str(tmp_path / "e"), "cpu")
    texts = ["soup", "star"]
    plain = SentenceTransformer(str(tmp_path / "e"), device="cpu")
    for role, how in (("query", plain.encode_query), ("document", plain.encode_document)):
        assert np.allclose(again.encode(texts, role=role), how(texts, normalize_embeddings=True), atol=1e-5)
    assert not np.allclose(again.encode(texts, role="query"), again.encode(texts, role="document"), atol=1e-3)


def test_a_head_sees_texts_with_their_prompts(tiny):
    from retrieval.train.batches import MISSING
    from retrieval.train.head import freeze

    columns = [["soup", "star"], ["star", "road"], ["", "soup"]]
    plain = load_encoder(str(tiny), "cpu")

    def encode(texts, role):
        return plain.encode(texts, role=role)

    frozen = freeze(plain.model, columns, encode)
    assert len(frozen.vectors) == 3 and frozen.columns.tolist() == [[1, 2], [2, 0], [MISSING, 1]]
    plain.model.prompts |= {"query": "query: ", "document": "passage: "}
    apart = freeze(plain.model, columns, encode)
    for role, rows, column in (("query", [0, 1], columns[0]), ("document", [0, 1], columns[1])):
        at = apart.columns[0 if role == "query" else 1][rows]
        assert np.allclose(apart.vectors[at], plain.encode(column, role=role), atol=1e-5)
    assert apart.columns[2][0] == MISSING and len(apart.vectors) == 5
    assert apart.items.tolist() == frozen.columns.tolist()  # "star" is one text, under whichever prompt


def test_a_text_under_two_prompts_is_one_item(tiny):
    """A head's batch of two pairs that share a text has no negatives, whatever stands before the text."""
    from retrieval.train.head import freeze, train_head

    plain = load_encoder(str(tiny), "cpu")

    def first_loss(columns):
        frozen = freeze(plain.model, columns, lambda texts, role: plain.encode(texts, role=role))
        batches = iter([(np.array([0, 1]), np.array([0, 1]))])
        return train_head(frozen, batches, LossConfig(), steps=1, lr=1e-3)[1][0]["loss"]

    for prompts in ({}, {"query": "query: ", "document": "passage: "}):
        plain.model.prompts |= prompts
        assert first_loss([["soup", "star"], ["star", "road"]]) == 0
        assert first_loss([["soup", "star"], ["moon", "road"]]) > 0


def test_heads_are_swept_with_the_encoders_prompts(tiny, tmp_path):
    """As they are trained and judged."""
    from retrieval.cli.held import by_pairs
    from retrieval.cli.trials import by_heads

    encoder, held = load_encoder(str(tiny), "cpu"), by_pairs(PAIRS)
    plain = by_heads(encoder, PAIRS, held, {"lr": None}, tmp_path / "plain").untrained()
    encoder.model.prompts |= {"query": "query: ", "document": "passage: "}
    prompted = by_heads(encoder, PAIRS, held, {"lr": None}, tmp_path / "prompted").untrained()
    np.testing.assert_allclose(prompted, held.encode(encoder), atol=1e-6)
    assert np.abs(prompted - plain).max() > 1e-3


def test_weights_between_old_and_new(command, run_cli, tmp_path, tiny):
    run_cli(*command, "--output", tmp_path / "new")
    run_cli(*command, "--output", tmp_path / "half", "--interpolate", 0.25)
    old, new, half = (load_file(f / "model.safetensors") for f in (tiny, tmp_path / "new", tmp_path / "half"))
    for key, value in half.items():
        assert torch.allclose(value, 0.75 * old[key] + 0.25 * new[key], atol=1e-6)


def test_equal_texts_and_linked_pairs_are_no_negatives(tiny):
    """A question with two answers, an answer to two questions, and a negative that is another pair's positive."""
    data = Texts(
        {
            "anchor": ["q", "q", "other", "third"],
            "positive": ["a", "b", "b", "c"],
            "negative_1": ["", "n", "c", "n"],
            "negative_2": ["", "", "m", ""],
        },
        None, None, "",
    )  # fmt: skip
    model = load_encoder(str(tiny), "cpu").model
    codes = np.stack([text_codes(data.columns["anchor"]), text_codes(data.columns["positive"])])
    rows = np.arange(4)
    plan = Plan(lambda: iter([Pairs(rows, rows)]), 4, 1, None)
    sources = [Source(list(data.columns.values()), (None, None), codes, plan)]
    batch = Collator(model, sources)(next(iter(Shares(sources, 1))))["batch"]
    items = batch["items"].view(2, 4)
    assert len(set(items[:, :3].flatten().tolist())) == 1 and items[0, 3] == items[1, 3] != items[0, 0]
    assert batch["codes"].tolist() == codes.flatten().tolist()
    assert batch["negative_pairs"].tolist() == [1, 2, 3, 2]
    n, c, again, m = batch["negative_items"].tolist()
    assert c == items[0, 3] and n == again != m


@pytest.mark.parametrize("head", [False, True])
def test_a_memory_holds_no_positive_against_its_anchor(head, tiny):
    """An answer to two questions, whose pairs come one after the other, and so does another."""
    data = Texts(
        {"anchor": ["bank", "night", "soup", "test"], "positive": ["salt", "star", "salt", "star"]}, None, None, ""
    )
    batches = [Pairs(np.array(rows), np.array(rows)) for rows in ([0, 1], [2, 3])]
    plan = Plan(lambda: iter(batches), 2, 2, None)
    encoder = load_encoder(str(tiny), "cpu")
    loss, config = named("xbm(memory=8, label_mask=False)"), TextConfig(head=head, steps=2)
    curve = train_text(encoder.model, data, config, loss, source="x", plans=[plan])
    assert [step["negatives"] for step in curve] == [2, 3]  # the other pair's, and the other answer remembered


@pytest.mark.parametrize("drawing", [Drawing(how="hard"), Drawing(how="distinct"), Drawing(tokens=120)])
def test_every_way_of_drawing_trains(tiny, drawing):
    _, curve = trained(tiny, drawing=drawing, steps=3)
    assert len(curve) == 3


def test_hard_batches_hold_nearer_rows(tiny):
    encoder = load_encoder(str(tiny), "cpu")
    vectors = encoder.encode(list(PAIRS.columns["anchor"]))

    def near(drawing):
        config = TextConfig(**{**SETTINGS, "drawing": drawing})
        plan = plan_batches(PAIRS, config, LOSS, "x", encoder.model)
        batches = [pairs.anchors for _, pairs in zip(range(6), plan.batches(), strict=False)]
        assert len(np.unique(np.concatenate(batches))) == len(PAIRS)
        return np.mean([(vectors[rows] @ vectors[rows].T).mean() for rows in batches])

    assert near(Drawing(how="hard")) > near(Drawing()) + 0.005


def test_hard_batches_are_of_the_encoder_before_training_with_its_prompts(tiny):
    def drawn(change=lambda model: None, **asked):
        model = load_encoder(str(tiny), "cpu").model
        config = TextConfig(**{**SETTINGS, **asked}, drawing=Drawing(how="hard"))
        plan = plan_batches(PAIRS, config, LOSS, "x", model)
        change(model)
        return [pairs.anchors.tolist() for _, pairs in zip(range(6), plan.batches(), strict=False)]

    def scramble(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))

    assert drawn() == drawn(scramble) != drawn(query_prompt="a long prompt of another kind: ")


@pytest.mark.parametrize(
    "options,words",
    [
        (["--head", "--lora", 4], "say in one way what learns"),
        (["--head", "--compile"], "--compile: is for training the encoder itself"),
        (["--head", "--report-to", "tensorboard"], "--report-to: is for training the encoder itself"),
        (["--weight", 2], "--weight: is for several --data"),
        (["--lora", 4, "--layer-decay", 0.9], "--layer-decay: is not for --lora"),
        (["--batches", "classes"], "--batches classes: the data have no labels"),
        (["--per-class", 4], "--per-class: is for labelled data"),
        (["--batches", "distinct", "--batch-tokens", 99], "--batch-tokens: cuts rows"),
        (["--patience", 2], "--patience: there is nothing to judge by"),
        (["--prompt", "a", "--query-prompt", "b"], "--prompt: is for texts of one kind"),
        (["--anchor", "nope", "--positive", "positive"], "--anchor nope:"),
        (["--anchor", "anchor"], "name both columns"),
        (["--min-score", 1], "has no scored pairs"),
        (["--dims", "8,x"], "such as 256,128,64"),
        (["--compute", "float16"], "--compute float16: needs a GPU"),
    ],
)
def test_settings_that_cannot_be_are_one_line(command, options, words, run_cli, tmp_path):
    error = run_cli(*command, *options, "--output", tmp_path / "run", code=2).stderr
    assert words in error and len(error.strip().splitlines()) <= 3


def test_several_data_sets_take_turns_by_weight(tiny, pairs_file, command, run_cli, tmp_path):
    labelled = Texts(
        {"text": [f"{a} {b}" for a in WORDS[:4] for b in WORDS]}, [a for a in WORDS[:4] for _ in WORDS], None, ""
    )
    loss = named("hcl")
    config = TextConfig(**{**SETTINGS, "steps": 300})
    model = load_encoder(str(tiny), "cpu").model
    several = [PAIRS, labelled, labelled]
    plans = [plan_batches(each, config, loss, "x") for each in several]
    sources = _sources(model, several, plans, (3, 1, 1), config)
    drawn = list(Shares(sources, 300))
    counts = np.bincount([share.source for share in drawn]) / 300
    assert np.abs(counts - [0.6, 0.2, 0.2]).max() < 0.1
    assert [source.first_class for source in sources] == [0, 0, 4]
    last = next(share for share in drawn if share.source == 2)
    assert set(Collator(model, sources)(last)["batch"]["labels"].tolist()) <= {4, 5, 6, 7}
    again = list(Shares(sources, 300))
    assert all((a.pairs.anchors == b.pairs.anchors).all() for a, b in zip(drawn, again, strict=True))
    path = tmp_path / "labelled.csv"
    path.write_text(
        "text,label\n" + "".join(f"{t},{c}\n" for t, c in zip(labelled.texts, labelled.labels, strict=True))
    )
    run_cli(*command, "--data", path, "--weight", 2, "--weight", 1, "--output", tmp_path / "run")
    error = run_cli(*command, "--data", path, "--weight", 2, "--output", tmp_path / "other", code=2).stderr
    assert "--weight: 1 for 2 --data" in error


def test_events_for_tensorboard_belong_to_the_run(command, run_cli, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    run_cli(*command, "--report-to", "tensorboard", "--output", tmp_path / "run")
    assert list((tmp_path / "run" / "run" / "tensorboard").iterdir())
