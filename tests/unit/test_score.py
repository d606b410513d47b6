"""`assent score`: every shape of data, every kind of source, the same numbers as transformers and as Python."""

from __future__ import annotations

import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import assent
from assent import cli
from assent.config import ModelConfig, ScoreConfig, settings
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.distributed import World
from assent.errors import ConfigError
from assent.models.heads import WantedHead, load_score_model, save_reward_model
from assent.models.reward_head import HeadRule
from assent.rewards.outside import open_source, rewards_of
from assent.rewards.scoring import score_examples, scored_chunks

PAIRS = [
    {"prompt": "Name a colour.", "chosen": "Red is a colour.", "rejected": "egg", "id": 7},
    {"prompt": "2+2?", "chosen": "4", "rejected": "The answer is five, I think."},
    {"prompt": "What is the capital of France?", "chosen": "Paris.", "rejected": "I"},
    {"prompt": "Thank you!", "chosen": "You're welcome.", "rejected": "No."},
]
RANKED = [
    {"context": [{"role": "user", "content": "2+2?"}],
     "completions": [{"rank": rank, "completion": text} for rank, text in enumerate(("4", "four", "5", "egg"))]},
    {"context": [{"role": "user", "content": "Hi"}],
     "completions": [{"rank": rank, "completion": text} for rank, text in enumerate(("Hello!", "No"))]},
]  # fmt: skip
RATED = [
    {"prompt": "2+2?", "response": text, "helpfulness": h, "correctness": c, "coherence": 3, "complexity": 1,
     "verbosity": v}
    for text, h, c, v in (("4", 4, 4, 0), ("It is four.", 3, 4, 2), ("egg", 0, 0, 1))
]  # fmt: skip
LABELLED = [{"prompt": "2+2?", "completion": text, "label": text == "4"} for text in ("4", "5", "egg")]
SINGLE = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}]
ALONE = World(0, 1, 0, torch.device("cpu"))


def file_of(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> dict[str, str]:
    """Two reward models as `assent reward` writes them."""
    made = {}
    for seed, name in enumerate(("one", "two"), 3):
        scorer = load_score_model(
            ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=seed
        )
        with torch.no_grad():
            scorer.model.score.weight.mul_(20)
        folder = tmp_path_factory.mktemp("rewards") / name
        save_reward_model(scorer, Chat(tokenizer), folder)
        made[name] = str(folder)
    return made


def run(capsys, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the rows on standard output (which is no terminal here), and what was said, on one line: where it is
    broken depends on the length of the test's folder."""
    code = cli.main(["score", *words, "--precision", "fp32"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()] if code == 0 else [], " ".join(err.split())


def transformers_scores(folder: str, talks: list[list[dict[str, str]]]) -> list[float]:
    """The usual recipe: the folder's template, tokenizer and logit, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for talk in talks:
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            found.append(model(input_ids=ids).logits.item())
    return found


def talks_of(rows: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in rows
        for side in ("chosen", "rejected")
    ]


# ---- numbers


def test_pairs_are_scored_as_transformers_scores_them(models, tmp_path, capsys) -> None:
    code, rows, said = run(capsys, models["one"], file_of(tmp_path, PAIRS))
    assert code == 0, said
    want = transformers_scores(models["one"], talks_of(PAIRS))
    np.testing.assert_allclose([row["reward"] for row in rows], want, atol=2e-5)
    assert np.std(want) > 0.05
    assert [(row["row"], row["response"]) for row in rows] == [(n, side) for n in range(1, 5) for side in (0, 1)]
    assert all(row["file"].endswith("rows.jsonl") and row["tokens"] > 0 for row in rows)
    assert len({row["prompt"] for row in rows}) == 4 and rows[0]["prompt"] == rows[1]["prompt"]
    gaps = [a - b for a, b in zip(want[::2], want[1::2], strict=True)]
    right = sum(gap > 0 for gap in gaps)
    assert f"{right} right, 0 ties, {4 - right} wrong" in said
    assert f"{25 * right}.0 %" in said and "8 to 4 prompts" in said and "all scored" in said


def test_a_table_of_answers_that_nobody_scored(models, tmp_path, capsys) -> None:
    code, rows, said = run(capsys, models["one"], file_of(tmp_path, PAIRS), "--max_length", "2")
    assert code == 0 and {row["reward"] for row in rows} == {None}
    assert "0 pairs" in said and "nan" not in said and "constant" not in said


def test_ties_of_the_labels_are_counted(models, tmp_path, capsys) -> None:
    rows = [
        {
            "context": [{"role": "user", "content": f"{n}?"}],
            "response1": "A b.",
            "response2": "C.",
            "overall_preference": 0,
        }
        for n in range(3)
    ]
    code, _, said = run(capsys, models["one"], file_of(tmp_path, rows))
    assert code == 0 and "3: two answers that the labels call equal" in said and "accuracy" not in said


def test_an_empty_answer_is_named_and_counted(models, tmp_path, capsys) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hello", "rejected": ""}, PAIRS[0]]
    code, found, said = run(capsys, models["one"], file_of(tmp_path, rows))
    assert code == 0 and [row["row"] for row in found] == [2, 2]
    assert "left out:" in said and ":1: rejected: " in said and "rows left out" in said


def test_python_gives_what_the_command_gives(models, tmp_path, capsys) -> None:
    file, out, summary = file_of(tmp_path, PAIRS), tmp_path / "a.jsonl", tmp_path / "a.json"
    assert cli.main(["score", models["one"], file, "--out", str(out), "--summary", str(summary)]) == 0
    first = capsys.readouterr().out
    found = assent.score(assent.ScoreConfig((models["one"],), file, out=str(tmp_path / "b.jsonl")))
    assert capsys.readouterr().out == first and "accuracy" in first
    assert (tmp_path / "b.jsonl").read_bytes() == out.read_bytes() and not list(tmp_path.glob("*.part"))
    told = json.loads(summary.read_text())
    assert told == json.loads(found.to_json())
    rewards = [json.loads(line)["reward"] for line in out.read_text().splitlines()]
    assert told["reward"]["mean"]["mean"] == pytest.approx(np.mean(rewards))
    assert told["reward"]["std"] == pytest.approx(np.std(rewards, ddof=1))
    assert told["reward"]["quantiles"]["50"] == pytest.approx(np.median(rewards))
    gaps = np.array(rewards[::2]) - np.array(rewards[1::2])
    assert told["comparisons"]["right"] == (gaps > 0).sum() and told["comparisons"]["accuracy"]["n"] == 4
    lengths = [json.loads(line)["tokens"] for line in out.read_text().splitlines()]
    assert told["length"]["rho"] == pytest.approx(stats.spearmanr(rewards, lengths).statistic)
    shorter = [gap for gap, a, b in zip(gaps, lengths[::2], lengths[1::2], strict=True) if a < b]
    longer = [gap for gap, a, b in zip(gaps, lengths[::2], lengths[1::2], strict=True) if a > b]
    assert told["shorter"]["accuracy"]["n"] == len(shorter) and told["longer"]["accuracy"]["n"] == len(longer)
    assert told["shorter"]["right"] == sum(gap > 0 for gap in shorter)


def test_chunks_of_any_size_give_the_same(models, tmp_path) -> None:
    examples = load_examples(file_of(tmp_path, PAIRS + RANKED[:0])).examples
    outside = open_source(ScoreConfig((models["one"],), "", precision="fp32"), ALONE)
    whole = score_examples(outside.source, examples, outside.chat, max_length=outside.max_length)
    pieces = [
        (len(portion), scores.values)
        for portion, scores in scored_chunks(
            outside.source, examples, outside.chat, max_length=outside.max_length, size=3
        )
    ]
    assert [count for count, _ in pieces] == [1, 1, 1, 1]
    np.testing.assert_allclose(np.concatenate([values for _, values in pieces]), whole.values, atol=1e-5)


# ---- shapes of data


def test_rankings_share_their_prompt(models, tmp_path, capsys) -> None:
    code, rows, said = run(capsys, models["one"], file_of(tmp_path, RANKED), "--summary", str(tmp_path / "s.json"))
    assert code == 0 and [row["response"] for row in rows] == [0, 1, 2, 3, 0, 1]
    talks = [
        [*row["context"], {"role": "assistant", "content": one["completion"]}]
        for row in RANKED
        for one in row["completions"]
    ]
    rewards = transformers_scores(models["one"], talks)
    np.testing.assert_allclose([row["reward"] for row in rows], rewards, atol=2e-5)
    told = json.loads((tmp_path / "s.json").read_text())
    right = sum(rewards[i] > rewards[j] for i in range(4) for j in range(i + 1, 4)) + (rewards[4] > rewards[5])
    assert told["comparisons"]["right"] == right and told["comparisons"]["accuracy"]["n"] == 7
    assert told["kendall"]["mean"] == pytest.approx(stats.kendalltau([0, -1, -2, -3], rewards[:4]).statistic)
    assert told["kendall"]["n"] == 1, "a ranking of two is a pair"


def test_ratings_labels_and_single_answers(models, tmp_path, capsys) -> None:
    summary = tmp_path / "s.json"
    code, rows, said = run(capsys, models["one"], file_of(tmp_path, RATED), "--summary", str(summary))
    assert code == 0 and len(rows) == 3, said
    rewards, told = [row["reward"] for row in rows], json.loads(summary.read_text())
    assert told["ratings"]["overall"]["rho"] == pytest.approx(stats.spearmanr(rewards, [4, 3, 0]).statistic)
    assert told["ratings"]["verbosity"]["rho"] == pytest.approx(stats.spearmanr(rewards, [0, 2, 1]).statistic)
    assert told["ratings"]["coherence"]["rho"] is None, "constant"
    assert told["comparisons"]["accuracy"]["n"] == 3 and "Spearman with overall rating" in said

    code, rows, said = run(capsys, models["one"], file_of(tmp_path, LABELLED), "--summary", str(summary))
    rewards, told = [row["reward"] for row in rows], json.loads(summary.read_text())
    assert code == 0 and told["auc"] == pytest.approx(sum(rewards[0] > other for other in rewards[1:]) / 2)

    code, rows, said = run(capsys, models["one"], file_of(tmp_path, SINGLE), "--summary", str(summary))
    told = json.loads(summary.read_text())
    assert code == 0 and len(rows) == 1 and told["comparisons"] is None and told["reward"]["std"] is None


def test_prompts_without_answers_are_refused_or_named(models, tmp_path, capsys) -> None:
    prompts = [{"prompt": [{"role": "user", "content": "2+2?"}]}]
    code, _, said = run(capsys, models["one"], file_of(tmp_path, prompts))
    assert code == 2 and "answers to prompts are needed" in said and "prompts without answers" in said
    code, _, said = run(capsys, models["one"], file_of(tmp_path, [{"text": "Two and two."}]))
    assert code == 2 and "plain text" in said
    mixed = [SINGLE[0], {"messages": [{"role": "user", "content": "Hi"}]}]
    code, rows, said = run(capsys, models["one"], file_of(tmp_path, mixed))
    assert code == 0 and len(rows) == 1 and "left out" in said and ":2:" in said and "rows left out" in said


def test_answers_of_several_turns_with_a_system_message(models, tmp_path, capsys) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    code, rows, _ = run(capsys, models["one"], file_of(tmp_path, [{"messages": talk}]))
    assert code == 0
    np.testing.assert_allclose(rows[0]["reward"], transformers_scores(models["one"], [talk])[0], atol=2e-5)


# ---- what cannot be scored


def test_too_long_answers_are_counted_and_not_cut(models, tmp_path, capsys) -> None:
    rows = [
        {"prompt": "2+2?", "chosen": "4", "rejected": "four " * 30},
        {"prompt": "Why? " * 30, "chosen": "So.", "rejected": "No."},
        {"prompt": "Hi " * 20_000, "chosen": "So.", "rejected": "No."},
        PAIRS[0],
    ]
    summary = tmp_path / "s.json"
    code, found, said = run(
        capsys, models["one"], file_of(tmp_path, rows), "--max_length", "48", "--summary", str(summary)
    )
    assert code == 0
    assert [row["reward"] is None for row in found] == [False, True, True, True, True, True, False, False]
    assert "longer than 48 tokens (--max_length)" in found[1]["reason"] and "characters" in found[4]["reason"]
    want = transformers_scores(models["one"], talks_of(rows[:1] + rows[3:]))
    np.testing.assert_allclose([found[index]["reward"] for index in (0, 6, 7)], [want[0], want[2], want[3]], atol=2e-5)
    told = json.loads(summary.read_text())
    assert sum(told["unscored"].values()) == 5 and told["comparisons"]["accuracy"]["missing"] == 3
    assert told["comparisons"]["accuracy"]["n"] == 1 and "5 unscored" in said


def test_a_tie_is_not_right(tmp_path, capsys) -> None:
    code, rows, said = run(capsys, "contains=gold", file_of(tmp_path, [{**PAIRS[0], "gold": "zebra"}]))
    assert code == 0 and [row["reward"] for row in rows] == [0.0, 0.0]
    assert "0.0 %" in said and "0 right, 1 ties, 0 wrong" in said


def test_where_nothing_is_scored_no_number_stands(tmp_path, capsys) -> None:
    (tmp_path / "none.py").write_text("def f(completions, **columns):\n    return [None] * len(completions)")
    ranked = {
        "prompt": [{"role": "user", "content": "Which?"}],
        "responses": [{"messages": [{"role": "assistant", "content": text}]} for text in ("a", "b", "c")],
        "feedback": [{"kind": "ranking", "levels": [[0], [1], [2]]}],
    }
    for rows in (PAIRS, [ranked]):
        code, found, said = run(capsys, f"{tmp_path}/none.py:f", file_of(tmp_path, rows))
        assert code == 0 and all(row["reward"] is None for row in found)
        assert "nan" not in said and "no pair scored" in said and "too few are scored" in said, said
        assert "constant" not in said and not re.search(r"\d %", said.replace("95 %", "")), said
    assert "1 without an order" in said


# ---- sources


def test_rules_and_functions_need_no_tokenizer(tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(
        "def red(completions, **columns):\n    return [None if c == 'egg' else 1.0 * ('Red' in c) for c in completions]"
    )
    rows = [{**PAIRS[0], "gold": "Red"}, {**PAIRS[2], "gold": "Paris"}]
    words = (f"{tmp_path}/mine.py:red", "contains=gold", file_of(tmp_path, rows), "--explain", "--weights", "red:2")
    code, found, said = run(capsys, *words)
    assert code == 0, said
    assert [row["reward"] for row in found] == [3.0, 0.0, 1.0, 0.0]  # "egg": by what the rule says alone
    assert found[0]["parts"] == {"contains": 1.0, "red": 1.0} and found[0]["shares"] == {"contains": 1.0, "red": 2.0}
    assert found[0]["characters"] == len("Red is a colour.") and "tokens" not in found[0]


def test_what_a_function_leaves_out_says_so(tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(
        "def f(completions, **c):\n    return [None if x == 'I' else 1 for x in completions]"
    )
    code, found, said = run(capsys, f"{tmp_path}/mine.py:f", file_of(tmp_path, [PAIRS[2]]))
    assert code == 0 and found[1]["reward"] is None and found[1]["reason"] == "f: returned None"
    assert "1: f: returned None" in said


@pytest.mark.parametrize("combine", ["mean", "min", "lcb"])
def test_several_models_are_an_ensemble(combine: str, models, tmp_path, capsys) -> None:
    file = file_of(tmp_path, PAIRS)
    alone = [[row["reward"] for row in run(capsys, models[name], file)[1]] for name in ("one", "two")]
    code, rows, _ = run(capsys, models["one"], models["two"], file, "--ensemble", combine, "--deviations", "0.5")
    one, two = np.array(alone)
    want = {"mean": (one + two) / 2, "min": np.minimum(one, two), "lcb": (one + two) / 2 - 0.25 * np.abs(one - two)}
    np.testing.assert_allclose([row["reward"] for row in rows], want[combine], atol=1e-5)
    np.testing.assert_allclose([row["parts"]["model/two"] for row in rows], two, atol=1e-5)
    np.testing.assert_allclose([row["columns"]["model/std"] for row in rows], np.abs(one - two) / 2, atol=1e-5)


def test_attributes_their_shares_and_other_weights(tiny_model_dir, tokenizer, tmp_path, capsys) -> None:
    rule = HeadRule(("helpfulness", "verbosity"), (1.0, -0.5))
    scorer = load_score_model(
        ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=1, head=WantedHead(rule)
    )
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    folder = tmp_path / "attributes"
    save_reward_model(scorer, Chat(tokenizer), folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    talks = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in RATED
    ]
    own = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = np.stack(
            [
                model(own.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]).logits[0]
                for talk in talks
            ]
        )
    file, summary = file_of(tmp_path, RATED), tmp_path / "s.json"
    code, rows, said = run(capsys, str(folder), file, "--explain", "--summary", str(summary))
    assert code == 0, said
    np.testing.assert_allclose([row["reward"] for row in rows], logits @ [1, -0.5], atol=2e-5)
    for k, name in enumerate(rule.names):
        np.testing.assert_allclose([row["parts"][f"model/{name}"] for row in rows], logits[:, k], atol=2e-5)
        shares = logits[:, k] * rule.weights[k]
        np.testing.assert_allclose([row["shares"][f"model/{name}"] for row in rows], shares, atol=2e-5)
    told = json.loads(summary.read_text())
    both = np.cov(logits.T, bias=True)  # of the outputs; of the reward with each share
    of_all = {"helpfulness": both[0, 0] - 0.5 * both[0, 1], "verbosity": 0.25 * both[1, 1] - 0.5 * both[0, 1]}
    for name, part in of_all.items():
        share = told["shares"][f"model/{name}"]
        assert share["variance"] == pytest.approx(part / (logits @ [1, -0.5]).var(), abs=1e-3)
    assert sum(share["variance"] for share in told["shares"].values()) == pytest.approx(1)
    assert told["shares"]["model/verbosity"]["mean"] == pytest.approx(-0.5 * logits[:, 1].mean(), abs=2e-5)
    assert "adds on average" in said and f"{100 * told['shares']['model/verbosity']['variance']:.0f} %" in said
    want = stats.spearmanr(logits[:, 1], [0, 2, 1]).statistic
    assert told["ratings"]["verbosity"]["rho"] == pytest.approx(want), "the output of that name is compared"
    assert told["parts"]["model/verbosity"]["mean"]["mean"] == pytest.approx(logits[:, 1].mean(), abs=2e-5)

    code, rows, _ = run(capsys, str(folder), file, "--weights", "verbosity:2")
    np.testing.assert_allclose([row["reward"] for row in rows], 2 * logits[:, 1], atol=4e-5)
    code, rows, _ = run(capsys, str(folder), "contains=prompt", file, "--weights", "verbosity:2", "contains:3")
    assert code == 2, "the rule needs its column"
    code, _, said = run(capsys, str(folder), file, "--weights", "verbosty:1")
    assert code == 2 and "--weights: no output is called 'verbosty'. Perhaps you meant 'verbosity'" in said


class Lengths(BaseHTTPRequestHandler):
    """An OpenRLHF reward server: the length of what it is sent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = json.dumps({"rewards": [len(text) for text in body["query"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server(tiny_model_dir, tokenizer, tmp_path, capsys) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lengths)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        word = f"openrlhf=http://127.0.0.1:{server.server_port}"
        code, _, said = run(capsys, word, file_of(tmp_path, PAIRS))
        assert code == 2 and "--tokenizer" in said
        code, rows, said = run(capsys, word, file_of(tmp_path, PAIRS), "--tokenizer", str(tiny_model_dir))
        texts = [tokenizer.apply_chat_template(talk, tokenize=False).rstrip("\n") for talk in talks_of(PAIRS)]
        assert code == 0 and [row["reward"] for row in rows] == [len(text) for text in texts]
        assert "127.0.0.1" not in said, "an address may hold a password"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nothing/at/all", "", "SOURCE nothing/at/all: .* there is no such folder"),
        ("nothing", "", "SOURCE nothing: .*A source is a reward model"),
        ("numerik=answer", "", "there is no 'numerik'. Perhaps you meant 'numeric'.*openrlhf=URL"),
        ("implicit=", "", "SOURCE implicit= says nothing"),
        ("exact exact", "", "SOURCE exact is named twice"),
        ("exact", "--ensemble min", "--ensemble min is about several reward models. Got 0"),
        ("exact", "--beta 0.1", "--beta is about the policy of implicit=FOLDER"),
        ("exact", "--weights exat:1", "no source is called 'exat'. Perhaps you meant 'exact'"),
        ("length=3,9", "", "SOURCE length=3,9 counts tokens, .*--tokenizer"),
        ("regex", "", "needs the option 'pattern'"),
        ("exact", "", "SOURCE|answer: the rule 'exact' needs the right answer"),
    ],
)
def test_what_is_no_source_is_one_message(source: str, options: str, message: str, tmp_path, capsys) -> None:
    code, _, said = run(capsys, *source.split(), file_of(tmp_path, PAIRS), *options.split())
    assert code == 2 and "Traceback" not in said
    assert re.search(message, " ".join(said.split())), said


def test_a_folder_without_a_head_says_how_to_get_one(tiny_model_dir, tmp_path, capsys) -> None:
    code, _, said = run(capsys, str(tiny_model_dir), file_of(tmp_path, PAIRS))
    assert code == 2 and "has no trained reward head" in said and "assent reward" in said


def test_nothing_is_written_over(models, tmp_path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    code, _, said = run(capsys, models["one"], file_of(tmp_path, PAIRS), "--out", str(tmp_path / "a.jsonl"))
    assert code == 2 and "exists already" in said and (tmp_path / "a.jsonl").read_text() == "mine"


def test_an_interrupt_keeps_what_is_done(models, tmp_path, capsys, monkeypatch) -> None:
    from assent.evaluate import score as module

    def stop(*_: object, **__: object):
        yield from list(scored_chunks(*_, **{**__, "size": 2}))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "scored_chunks", stop)
    out = tmp_path / "a.jsonl"
    code, _, said = run(capsys, models["one"], file_of(tmp_path, PAIRS), "--out", str(out))
    assert code == 130 and "interrupted" in said and "Traceback" not in said and not out.exists()
    assert len(Path(f"{out}.part").read_text().splitlines()) == 4


def test_words_become_the_options_of_training(tmp_path) -> None:
    (tmp_path / "format=x").mkdir()
    config = ScoreConfig(
        ("m", "org/n", "numeric", "format=a,b", "regex=a=b", "f.py:g", "vllm=http://h:1", f"{tmp_path}/format=x"), "f"
    )
    found = rewards_of(config)
    assert found.model == ("m", "org/n", f"{tmp_path}/format=x") and found.functions == ("f.py:g",)
    assert found.rules == ("numeric", "format=a,b", "regex=a=b") and found.servers == ("vllm=http://h:1",)
    with pytest.raises(ConfigError, match="there is no 'sglan'"):
        rewards_of(ScoreConfig(("sglan=http://h",), "f"))
    settings.validate(config)


def test_the_row_is_json_without_nan(models, tmp_path, capsys) -> None:
    rows = [{"prompt": "2+2?", "chosen": "4", "rejected": "four " * 30}]
    _, found, _ = run(capsys, models["one"], models["two"], file_of(tmp_path, rows), "--max_length", "40", "--explain")
    assert found[1]["reward"] is None and found[1]["columns"]["model/std"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for row in found for v in row["parts"].values() if v)
