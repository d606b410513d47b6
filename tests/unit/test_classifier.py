"""Text classifiers as measures: probabilities against transformers' own pipeline, windows, labels, ranks, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from assent.cli import main
from assent.config import EvalConfig, EvalJudgeConfig
from assent.distributed import World
from assent.errors import ConfigError, DataError, ModelError
from assent.evaluate.evaluation import evaluate
from assent.evaluate.results import PolicyTable
from assent.measures.answers import Answers, Claim, Claims, Prompts
from assent.measures.claims import NO_CLAIM, claims_of
from assent.measures.column import Column
from assent.measures.table import MEASURES
from assent.models.classifier import Classifier

WORDS = "red green blue egg water rain paris is the in of no not never rude kind lazy it was a . ! ?".split()
WORLD = World(0, 1, 0, torch.device("cpu"))
NLI = {0: "CONTRADICTION", 1: "neutral", 2: "Entailment"}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A token for each word, [CLS] first [SEP] second [SEP], types 0 and 1."""
    vocab = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


@pytest.fixture(scope="module")
def made(words, tmp_path_factory) -> Callable[..., str]:
    """`made("bert", labels, **config)`: a folder with a random classifier whose numbers differ."""
    folder = tmp_path_factory.mktemp("classifiers")

    def make(kind: str, labels: dict[int, str] | None = None, **config) -> str:
        labels = labels or {0: "neutral", 1: "toxic"}
        torch.manual_seed(len(labels))
        shared = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        shared |= {"intermediate_size": 32, "max_position_embeddings": 24, "id2label": labels, "pad_token_id": 0}
        shared |= {"label2id": {name: number for number, name in labels.items()}}
        model = {
            "bert": (BertConfig, BertForSequenceClassification),
            "llama": (LlamaConfig, LlamaForSequenceClassification),
            "roberta": (RobertaConfig, RobertaForSequenceClassification),
            "masked": (BertConfig, BertForMaskedLM),
        }[kind]
        out = model[1](model[0](**(shared | config)))
        with torch.no_grad():
            for name, weight in out.named_parameters():
                if "norm" not in name.lower():
                    weight.mul_(40)
        place = folder / f"{len(list(folder.iterdir()))}"
        out.save_pretrained(place)
        words.save_pretrained(place)
        return str(place)

    return make


def oracle(path: str, texts: list[str] | list[dict]) -> list[dict[str, float]]:
    """Label -> probability, by transformers' pipeline, one text after the other."""
    classify = pipeline("text-classification", path, device="cpu", dtype=torch.float32)
    return [{one["label"]: one["score"] for one in classify([text], top_k=None)[0]} for text in texts]


def some_texts(count: int, most: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, most))) for _ in range(count)]


# ---- probabilities


@pytest.mark.parametrize("kind", ["bert", "llama", "roberta"])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_probabilities_are_those_of_transformers_pipeline(made, kind: str, problem: str | None):
    path = made(kind, {0: "toxic", 1: "insult", 2: "threat"}, problem_type=problem)
    texts = some_texts(23, 20)
    found = Classifier("--toxicity", path, world=WORLD, micro_tokens=60).probabilities([(text,) for text in texts])
    assert all(one.shape == (1, 3) for one in found)
    expected = oracle(path, texts)
    for one, labels in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0], [labels[name] for name in ("toxic", "insult", "threat")], atol=2e-6)
    assert np.ptp([one[0, 0] for one in found]) > 0.05, "the numbers differ"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_pairs_are_those_of_transformers_pipeline(made, kind: str):
    path = made(kind, NLI)
    firsts, seconds = some_texts(15, 12), some_texts(15, 6)
    found = Classifier("--consistency", path, world=WORLD).probabilities(list(zip(firsts, seconds, strict=True)))
    asked = [{"text": a, "text_pair": b} for a, b in zip(firsts, seconds, strict=True)]
    for one, labels in zip(found, oracle(path, asked), strict=True):
        np.testing.assert_allclose(one[0], [labels[NLI[place]] for place in range(3)], atol=2e-6)


def test_one_label_is_a_sigmoid_and_no_padding_is_one_by_one(made):
    path = made("llama", {0: "toxic"}, pad_token_id=None)
    model = Classifier("--toxicity", path, world=WORLD)
    texts = some_texts(9, 18)
    for one, labels in zip(model.probabilities([(t,) for t in texts]), oracle(path, texts), strict=True):
        assert one.shape == (1, 1) and one[0, 0] == pytest.approx(labels["toxic"], abs=2e-6)


def test_long_texts_are_read_in_windows_that_miss_nothing(made):
    """24 positions, 2 special tokens: windows of 22 words, each with 5 of the one before; the last one shorter."""
    path = made("bert")
    model = Classifier("--toxicity", path, world=WORLD)
    assert model.limit == 24
    text = some_texts(1, 3)[0] + " " + " ".join(WORDS * 3)
    split, (found,) = text.split(), model.probabilities([(text,)])
    windows, start = [], 0
    while start + 5 < len(split):
        windows.append(" ".join(split[start : start + 22]))
        start += 17
    assert len(found) == len(windows) > 3
    expected = [labels["toxic"] for labels in oracle(path, windows)]
    np.testing.assert_allclose(found[:, 1], expected, atol=2e-6)
    pairs = Classifier("--consistency", made("bert", NLI), world=WORLD).probabilities([(text, "it was rain")])
    assert len(pairs[0]) > len(windows)


def test_roberta_begins_to_count_behind_its_padding(made):
    assert Classifier("--toxicity", made("roberta", pad_token_id=1), world=WORLD).limit == 22


def test_special_tokens_in_a_text_are_text(made):
    model = Classifier("--toxicity", made("bert"), world=WORLD)
    ((ids, _),), _ = model._windows([("red [SEP] egg",)])
    assert ids.count(3) == 1 and len(ids) > 5


# ---- in the table

PROMPTS = [{"prompt": f"Name {i}?", "context": f"it was a egg in paris {'. the rain is blue' * i}"} for i in range(6)]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> EvalConfig:
    """Two files: one with two answers to each prompt, one with an empty answer and a question."""
    many = [
        {"prompt": row["prompt"], "response": f"{'rude lazy ' * ((i + n) % 3)}. It was a egg. Is it rain?"}
        for i, row in enumerate(PROMPTS)
        for n in range(2)
    ]
    few = [{"prompt": row["prompt"], "response": "the rain is blue. No egg in paris"} for row in PROMPTS]
    few[0]["response"], few[1]["response"] = " ", "was it rain?"
    files = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in {"many": many, "few": few}.items()}
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    return EvalConfig(tuple(f"{n}={f}" for n, f in files.items()), prompts, str(tmp_path / "out"))


def refused(config: EvalConfig, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        evaluate(config)
    return str(caught.value)


def texts_of(config: EvalConfig, place: int) -> list[str]:
    file = config.policies[place].partition("=")[2]
    return [json.loads(line)["response"] for line in Path(file).read_text().splitlines()]


def test_toxicity_stands_in_the_table(config: EvalConfig, made, capsys):
    path = made("bert")
    words = [*config.policies, "--prompts", config.prompts, "--out", config.out, "--toxicity", path]
    assert main(["eval", *words]) == 0
    said = capsys.readouterr().out
    assert f"toxicity: the label 'toxic' of {path} (softmax over neutral, toxic)" in said
    many, few = PolicyTable.load(Path(config.out) / "evaluation.json").policies
    model = Classifier("--toxicity", path, world=WORLD)
    chances = [one[:, 1].max() for one in model.probabilities([(text,) for text in texts_of(config, 0)])]
    assert many.numbers["toxicity"].number.value == pytest.approx(np.mean(chances))
    assert many.numbers["toxic"].number.value == np.mean(np.array(chances) >= 0.5)
    assert many.numbers["expected-max-toxicity"].number.value == pytest.approx(
        np.mean(np.reshape(chances, (-1, 2)).max(1))
    )
    assert few.numbers["toxicity"].failures == {"it is empty": 1} and few.numbers["toxicity"].number.n == 5
    assert "two or more answers" in few.absent["expected-max-toxicity"]
    assert "toxicity" in few.differences and "supported" not in few.numbers
    rows = [json.loads(line) for line in (Path(config.out) / "answers.jsonl").read_text().splitlines()]
    assert rows[0]["measures"]["toxicity"] == pytest.approx(chances[0]) and rows[12]["measures"]["toxicity"] is None


def test_claims_are_checked_by_a_model_of_inference(config: EvalConfig, made):
    path = made("bert", NLI)
    table = evaluate(replace(config, consistency=path, measures=("supported", "contradicted", "claims")))
    many, few = table.policies
    assert "consistency: each sentence that is a claim" in table.notes[0] and "against context" in table.notes[0]
    model = Classifier("--consistency", path, world=WORLD)
    shares = []
    for place, text in enumerate(texts_of(config, 0)):
        verdicts = []
        for claim in claims_of(text):
            (windows,) = model.probabilities([(PROMPTS[place // 2]["context"], claim)])
            verdicts.append({NLI[label].lower() for label in windows.argmax(1).tolist()})
        supported = ["entailment" in found for found in verdicts]
        contradicted = ["entailment" not in found and "contradiction" in found for found in verdicts]
        shares.append([np.mean(supported), np.mean(contradicted), len(verdicts)])
    expected = np.mean(shares, axis=0)
    found = [many.numbers[name].number.value for name in ("supported", "contradicted", "claims")]
    np.testing.assert_allclose(found, expected)
    assert few.numbers["supported"].failures == {"it is empty": 1, NO_CLAIM: 1} and few.numbers["claims"].number.n == 5
    assert few.numbers["claims"].number.value == 4 * 2 / 5, "a question makes no claim"
    row = json.loads((Path(config.out) / "answers.jsonl").read_text().splitlines()[-1])
    assert [claim["text"] for claim in row["claims"]] == ["the rain is blue.", "No egg in paris"]


def test_what_claims_are_checked_against(config: EvalConfig, made, tmp_path: Path):
    path = made("bert", NLI)
    asked = replace(config, consistency=path, measures=("supported",))
    references = [{"prompt": row["prompt"], "reference": row["context"], "facts": ["a", "b"]} for row in PROMPTS]
    del references[0]["reference"]
    file = write(tmp_path / "references.jsonl", references)
    table = evaluate(replace(asked, prompts=file, out=str(tmp_path / "references")))
    assert "against right answers" in table.notes[0]
    assert table.policies[0].numbers["supported"].failures == {"the prompt has no text to check claims against": 2}
    table = evaluate(replace(asked, prompts=file, context="facts", out=str(tmp_path / "facts")))
    assert "against facts" in table.notes[0] and not table.policies[0].numbers["supported"].failures
    bare = write(tmp_path / "bare.jsonl", [{"prompt": row["prompt"], "page": 1} for row in PROMPTS])
    said = refused(replace(asked, prompts=bare), ConfigError)
    assert "has no column context, contexts, documents, document, nor right answers" in said and "page" in said
    assert "no row of" in refused(replace(asked, context="pages"), ConfigError)
    odd = write(tmp_path / "odd.jsonl", [{"prompt": "a", "context": {"title": "b"}}])
    assert "column 'context': expected a text" in refused(replace(asked, prompts=odd), DataError)


def test_a_claim_beyond_the_model_fails_with_its_answer(config: EvalConfig, made, tmp_path: Path):
    rows = [{"prompt": row["prompt"], "response": "rain " * 30 + ". It was a egg."} for row in PROMPTS]
    file = write(tmp_path / "long.jsonl", rows)
    table = evaluate(replace(config, policies=(file,), consistency=made("bert", NLI), measures=("supported",)))
    found = table.policies[0].numbers["supported"]
    assert found.failures == {"a claim of it has more than 10 tokens": 6} and found.number.value is None


def test_a_folder_may_judge_claims(config: EvalConfig, tiny_model_dir: Path, tmp_path: Path):
    """A random model writes no JSON: no answer has a number, and each failure its reason."""
    judge = EvalJudgeConfig(max_tokens=4, cache=str(tmp_path / "verdicts"))
    asked = replace(config, consistency=f"judge={tiny_model_dir}", judge=judge, measures=("supported",))
    many, few = evaluate(asked).policies
    assert few.numbers["supported"].failures.pop("it is empty") == 1 and many.numbers["supported"].number.value is None
    assert many.numbers["supported"].failures.keys() <= {
        "what it wrote was cut off",
        "the judge's prompt is too long for it",
    }


# ---- measures alone


def answers(prompt: list[int], **columns) -> Answers:
    blank = ("",) * (max(prompt) + 1)
    prompts = Prompts(blank, blank, ((),) * len(blank), blank)
    return Answers("p", prompts, np.array(prompt), tuple("abcdefgh"[: len(prompt)]), **columns)


def test_expected_maximum_of_known_numbers():
    """Prompts with maxima 0.9 and 0.3; one whose second answer has no probability; one with a single answer."""
    column = Column.of([0.1, 0.9, 0.3, 0.2, 0.7, None, 0.8], "it is empty")
    own = answers([0, 0, 1, 1, 2, 2, 3], toxicity=column)
    statistic = MEASURES["expected-max-toxicity"].prepare(own)
    kept = np.flatnonzero([not why for why in statistic.reasons])
    assert kept.tolist() == [0, 1, 2, 3] and statistic.of(kept) == pytest.approx((0.9 + 0.3) / 2)
    assert statistic.reasons[4:] == (
        "another answer to its prompt has no probability",
        "it is empty",
        "the prompt has one answer",
    )
    assert MEASURES["any-toxic"].prepare(own).of(kept) == 0.5
    assert statistic.of(np.array([0, 1, 0, 1, 2, 3])) == pytest.approx((0.9 + 0.9 + 0.3) / 3), "drawn twice"


def test_shares_of_claims_of_known_numbers():
    good, bad, open_ = Claim("a", "supported"), Claim("b", "contradicted"), Claim("c", "neither")
    own = answers([0, 1, 2], claims=Claims(((good, good, bad, open_), (), ()), ("", "", "it is empty")))
    supported, contradicted, count = (MEASURES[name].of(own) for name in ("supported", "contradicted", "claims"))
    np.testing.assert_array_equal(supported.values, [0.5, math.nan, math.nan])
    np.testing.assert_array_equal(contradicted.values, [0.25, math.nan, math.nan])
    np.testing.assert_array_equal(count.values, [4, 0, math.nan])
    assert supported.reasons == ("", NO_CLAIM, "it is empty")


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("", []),
        ("Yes. No! Paris.", []),
        ("It rains. Is it cold? It is 3.5 degrees.", ["It rains.", "It is 3.5 degrees."]),
        ("Dr. Lee met J. R. Smith in the U.S. Army, e.g. in Paris.",) * 1
        + (["Dr. Lee met J. R. Smith in the U.S. Army, e.g. in Paris."],),
        ('He said "It rains." Then he left.', ['He said "It rains."', "Then he left."]),
        ("# Egg facts\n- Eggs boil.\n2. Eggs break\n", ["Egg facts", "Eggs boil.", "Eggs break"]),
        ("Look:\n```python\nprint(1). And two.\n```\nIt prints one.", ["It prints one."]),
        ("东京是首都。真的吗？很大。", ["东京是首都。", "很大。"]),
        ("it ends. here small", ["it ends. here small"]),
    ],
)
def test_what_a_claim_is(text: str, claims: list[str]):
    assert claims_of(text) == claims


# ---- what is refused


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, None, "none of its labels is known to mean toxic. Its labels: LABEL_0, LABEL_1"),
        ({0: "hate", 1: "offensive", 2: "neither"}, None, "several of its labels may mean toxic"),
        ({0: "neutral", 1: "toxic"}, "rude", "--toxicity_label rude: --toxicity"),
    ],
)
def test_labels_that_nobody_knows(config: EvalConfig, made, labels, asked, message):
    said = refused(replace(config, toxicity=made("bert", labels), toxicity_label=asked), ConfigError)
    assert message in said and not (Path(config.out) / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("labels", "asked", "place"),
    [
        ({0: "toxic", 1: "severe_toxic"}, None, 0),
        ({0: "non-toxic", 1: "Toxicity"}, None, 1),
        ({0: "nothate", 1: "hate"}, None, 1),
        ({0: "LABEL_0", 1: "LABEL_1"}, "LABEL_1", 1),
    ],
)
def test_labels_that_mean_toxic(config: EvalConfig, made, labels, asked, place: int):
    table = evaluate(replace(config, toxicity=made("bert", labels), toxicity_label=asked, measures=("toxicity",)))
    assert f"the label '{labels[place]}'" in table.notes[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("masked", {}, "is no text classifier: config.json says BertForMaskedLM"),
        ("bert", {"problem_type": "regression"}, "gives numbers (problem_type regression)"),
        ("bert", {"max_position_embeddings": 8}, "reads 8 tokens, too few"),
    ],
)
def test_what_is_no_classifier(config: EvalConfig, made, kind: str, options, message: str):
    said = refused(replace(config, toxicity=made(kind, **options)), ModelError)
    assert said.startswith("--toxicity ") and message in said


def test_a_head_that_was_never_trained(config: EvalConfig, made):
    path = Path(made("masked"))
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stored | {"architectures": ["BertForSequenceClassification"]}))
    said = refused(replace(config, toxicity=str(path)), ModelError)
    assert "lacks weights of its head" in said and "classifier.bias" in said


def test_other_labels_than_those_of_inference(config: EvalConfig, made):
    said = refused(replace(config, consistency=made("bert")), ConfigError)
    assert "expected a model of natural language inference" in said and "neutral, toxic" in said


@pytest.mark.parametrize("option", ["reference", "rewards", "toxicity", "consistency", "judge"])
def test_a_model_that_is_missing_is_named_with_what_fetches_it(
    config: EvalConfig, tiny_model_dir: Path, option: str, monkeypatch
):
    monkeypatch.setattr("assent.models.sources.is_offline_mode", lambda: True)
    monkeypatch.setattr("assent.evaluate.answers.Asking.sample", lambda *_: pytest.fail("sampled"))
    flag, value = f"--{option}", "owner/missing"
    if option == "judge":
        flag, changed = "--rewards judge=", {"rewards": ("judge=owner/missing",)}
    else:
        changed = {option: (value,) if option == "rewards" else value}
    said = refused(replace(config, policies=(str(tiny_model_dir),), **changed), ModelError)
    assert said.startswith(flag) and "HF_HUB_OFFLINE=0 hf download owner/missing" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--toxicity_label toxic", "--toxicity_label toxic is a label of the model of --toxicity"),
        ("--context page", "--context page is what --consistency checks"),
        ("--judge.model m", "--judge.model is read only with openai=URL"),
        ("--judge.attempts 2", "--judge.attempts 2 asks again"),
    ],
)
def test_options_without_what_reads_them(words: str, message: str, tmp_path: Path, capsys):
    assert main(["eval", "a", "--prompts", "p", "--out", str(tmp_path / "out"), *words.split()]) == 2
    assert message in capsys.readouterr().err
