"""`assent trust` as a person runs it: files of every kind, what is written, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.config import TrustConfig
from assent.data.jsonl import json_line
from assent.evaluate.trust import model_name, trust
from assent.measures.verdicts import summary

LENGTH = '''
def score(prompts, completions):
    """Longer is better; nothing is said of answers that hold "skip"."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [None if "skip" in text else float(len(text)) for text in texts]
'''
GOLD = """
def gold(prompt, answer):
    return None if "skip" in answer else float(answer.count("good"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """reward.py, gold.py, and pairs.jsonl whose better answers are long or short by chance."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "reward.py").write_text(LENGTH)
    (folder / "gold.py").write_text(GOLD)
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        good, bad = (("filler " * int(n)).strip() + "." for n in rng.integers(1, 12, size=2))
        row = {"prompt": f"Question {number}?", "chosen": f"A good {good} Yes.", "rejected": f"A {bad} No."}
        rows.append({**row, "margin": float(1 + number % 3), "source": "web" if number % 2 else "book"})
    rows[0]["rejected"] = "skip this"
    write(folder / "pairs.jsonl", rows)
    return folder


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(map(json_line, rows)), encoding="utf-8")
    return str(path)


def test_the_command_writes_numbers_and_a_page(place, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["trust", f"{place / 'reward.py'}:score", str(place / "pairs.jsonl"), "--out", str(out), "--probes", "20"]
    assert main([*words, "--scorer", f"{place / 'gold.py'}:gold"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "better is shorter" in printed and "worry" in printed
    found = json.loads((out / "trust.json").read_text())
    (file,) = found["files"]
    assert file["counts"] | {"failures": 0} == {
        "prompts": 60,
        "answers": 120,
        "unscored": 1,
        "failures": 0,
        "pairs": 60,
        "pairs_scored": 59,
        "label_ties": 0,
    }
    assert list(file["counts"]["failures"].values()) == [1]
    assert file["parts"]["better answer"]["shorter"]["right"]["mean"] < 0.2
    assert set(file["parts"]["source"]) == {"web", "book"} and set(file["parts"]["strength"]) == {"1", "2", "3"}
    assert file["gold"] == "gold reward" and file["best_of"][-1]["n"] == 2
    assert {each["name"] for each in file["sensitivity"]} >= {"spaces", "50 %"}
    assert any(finding["tone"] == "bad" for finding in file["findings"])
    page = (out / "trust.html").read_text()
    assert page.lstrip().startswith("<!DOCTYPE html>") and page.count("<svg") >= 5
    assert "Long answers are over-rated" in page and "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert "<script" not in page and "http" not in re.sub(r'xmlns\S*="http[^"]*"', "", page)

    # the same again: what stands there is a trust report, so it is replaced; the same bytes
    first = (out / "trust.json").read_bytes()
    trust(
        TrustConfig(
            (f"{place / 'reward.py'}:score",),
            file=str(place / "pairs.jsonl"),
            out=str(out),
            probes=20,
            scorer=f"{place / 'gold.py'}:gold",
        )
    )
    assert (out / "trust.json").read_bytes() == first


def test_what_is_something_else_is_not_replaced(place, tmp_path, capsys):
    (tmp_path / "trust.json").write_text('{"mine": 1}')
    words = ["trust", f"{place / 'reward.py'}:score", str(place / "pairs.jsonl"), "--out", str(tmp_path)]
    assert main(words) == 2
    (tmp_path / "trust.json").unlink()
    (tmp_path / "trust.html").write_text("<p>mine</p>")
    assert main(words) == 2
    assert (tmp_path / "trust.html").read_text() == "<p>mine</p>" and not (tmp_path / "trust.json").exists()


def test_several_files_an_ensemble_and_a_reward_model(place, scorer_dir, tmp_path):
    rated = [{"prompt": "Why?", "response": text, "helpfulness": n, "correctness": n, "coherence": 1, "complexity": 1,
              "verbosity": 1} for n, text in enumerate(["No.", "Because.", "Because of that."])]  # fmt: skip
    second = write(tmp_path / "rated.jsonl", rated)
    config = TrustConfig(
        (str(scorer_dir), str(scorer_dir.parent / scorer_dir.name / ".." / scorer_dir.name)),
        file=str(place / "pairs.jsonl"),
        also=(second,),
        limit=12,
        probes=2,
    )
    report = trust(config)
    first, ratings = report.files
    assert first.trust.disagreement is not None and len(first.trust.disagreement.members) == 2
    assert first.trust.disagreement.split.mean == 0  # it is the same model twice
    assert ratings.trust.gold == "overall rating" and [p.n for p in ratings.trust.best_of] == [1, 2, 3]
    assert ratings.trust.counts.pairs == 3
    texts = [relation.feature for relation in first.trust.bias.relations if relation.differs]
    assert texts == ["length"]


def test_a_benchmark_in_the_same_report(place, tmp_path):
    rows = [
        {"prompt": f"{n}?", "chosen": "It is so, yes." if n % 2 else "No.", "rejected": "Not at all.", "id": n,
         "subset": "hep-go" if n < 4 else "donotanswer"} for n in range(8)
    ]  # fmt: skip
    file = write(tmp_path / "rb.jsonl", rows)
    source = f"{place / 'reward.py'}:score"
    report = trust(TrustConfig((source,), file=file, out=str(tmp_path / "out"), name="org/len", probes=0))
    result = report.files[0].result
    assert result.name == "rewardbench" and result.subsets["hep-go"].mean == 0.5 and result.overall.score is None
    page = (tmp_path / "out" / "trust.html").read_text()
    assert "21 subsets have no score, so there is none" in page and "hep-cpp" in page
    assert json.loads((tmp_path / "out" / "eval-set" / "org" / "len.json").read_text())["hep-go"] == 0.5
    plain = trust(TrustConfig((source,), file=file, benchmark="none", probes=0))
    assert plain.files[0].result is None and plain.files[0].trust.parts["subset"]["hep-go"].right.mean == 0.5


def test_rewardbench_2_leaves_its_ties_out_of_the_general_measures(place, tmp_path):
    four = {"prompt": "2+2?", "chosen": ["It is four."], "rejected": ["5", "6", "7"], "subset": "Math", "id": "1"}
    tied = {"prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["7"], "subset": "Ties", "id": "tied:0"}
    file = write(tmp_path / "rb2.jsonl", [four, tied, {**tied, "chosen": ["red"], "id": "ref:0"}])
    report = trust(TrustConfig((f"{place / 'reward.py'}:score",), file=file, probes=0))
    assert report.files[0].trust.counts.pairs == 3 and report.files[0].result.subsets["Math"].mean == 1.0
    assert report.files[0].result.tied_answers.tied == 1.0


@pytest.mark.parametrize(
    ("rows", "words", "says"),
    [
        ([{"prompt": "Why?"}], [], "answers to prompts are needed"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "subset": "hep-go"}], [], "lacks id"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ["--benchmark", "rewardbench"], "lacks subset, id"),
    ],
)
def test_files_that_cannot_be_reported_on(place, tmp_path, capfd, rows, words, says):
    file = write(tmp_path / "file.jsonl", rows)
    assert main(["trust", f"{place / 'reward.py'}:score", file, *words]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Why?", "chosen": "b", "rejected": "c"}],
        [{"prompt": "Why?", "completion": "So."}, {"prompt": "How?", "completion": "Thus."}],
        [{"prompt": "Why?", "completion": "So.", "label": True}],
        [{"prompt": f"{n}?", "chosen": "one", "rejected": "two"} for n in range(5)],
        [{"prompt": "Why?", "chosen": "skip", "rejected": "skip it"}],
        [{"context": "Why?", "response1": "A b.", "response2": "C d.", "overall_preference": 0} for _ in range(3)],
    ],
    ids=["one row", "no labels", "yes/no labels", "constant rewards", "nothing scored", "all ties"],
)
def test_poor_files_are_reported_without_nan(place, tmp_path, rows, capsys):
    if "context" in rows[0]:
        rows = [{**row, "context": [{"role": "user", "content": f"Why {n}?"}]} for n, row in enumerate(rows)]
    file = write(tmp_path / "file.jsonl", rows)
    report = trust(TrustConfig((f"{place / 'reward.py'}:score",), file=file, out=str(tmp_path / "out"), probes=9))
    said, page = capsys.readouterr().out, (tmp_path / "out" / "trust.html").read_text()
    assert not re.search(r"\bnan\b", said) and not re.search(r"\bnan\b", page)
    if rows[0].get("chosen") == "skip":
        assert "no pair scored" in said and "No pair is scored: 1 left out." in page
        assert summary(report.files[0].trust)[0] == "accuracy unknown: no pair is scored, 1 left out"
    assert report.files[0].trust.notes or len(rows) == 1
    if rows[0].get("overall_preference") == 0:
        assert "all 3 comparisons are ties: accuracy" in " ".join(said.split()) and "are ties: accuracy" in page
    assert json.loads((tmp_path / "out" / "trust.json").read_text())["files"][0]["counts"]["answers"]


def test_names_of_sources_in_files():
    assert model_name(["runs/reward/model"]) == "model"
    assert model_name(["org/reward-8b"]) == "org/reward-8b"
    assert model_name(["a/b/c", "d/e/f"]) == "c+f"
    assert ".." not in model_name(["../.."])
