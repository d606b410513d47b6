"""`assent agree` and `assent aggregate` on files: what is written, what is dropped and said, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.data.formats import load_examples, to_row
from assent.data.records import Binary, Critique, Example, Message, Pair, Ranking, Rating, Response
from assent.data.views import pair_view
from assent.people.votes import one_row_each, table_of, votes_of, without_own


def example(number: int, *feedback, answers: int = 2, **meta) -> Example:
    responses = tuple(Response((Message("assistant", f"{'word ' * (k + 1)}{number}"),)) for k in range(answers))
    return Example((Message("user", f"question {number}"),), responses, feedback, meta=meta)


def write(path: Path, examples: list[Example]) -> str:
    path.write_text("".join(json.dumps(to_row(each)) + "\n" for each in examples), encoding="utf-8")
    return str(path)


def run(capsys, *words: str) -> tuple[int, str]:
    code = main([*words])
    told = capsys.readouterr()
    return code, " ".join((told.out + told.err).split())


def feedback_of(path: Path) -> list[tuple]:
    return [each.feedback for each in load_examples(str(path)).examples]


def test_every_kind_of_feedback_is_a_vote():
    row = example(
        0,
        Pair(1, 0, 2.0, "ann", first="rejected"),
        Pair(0, 1, 1.0, "bo", share=0.8),
        Ranking(((0, 1),), "cy"),
        Ranking(((2,), (1, 0)), "di"),
        Binary(0, True, "ann"),
        Rating(1, {"helpfulness": 3}, "ann"),
        Critique(0, "poor", "ann"),
        Pair(0, 1),
        Pair(0, 1),
        answers=3,
    )
    votes = votes_of([row])
    said = {(two[1:], who): (vote.first, vote.strength, vote.left) for (two, who), vote in votes.comparisons.items()}
    assert said[(0, 1), "ann"] == (0.0, -2.0, 0)
    assert said[(0, 1), "bo"] == (pytest.approx(0.8), 1.0, None)
    assert said[(0, 1), "cy"] == (0.5, None, None)
    assert [said[two, "di"][0] for two in ((0, 1), (0, 2), (1, 2))] == [0.5, 0.0, 0.0]
    assert len([who for _, who in votes.comparisons if who.startswith("(no name)")]) == 2
    assert votes.labels == {((0, 0), "ann"): True} and votes.ratings == {((0, 1), "ann"): {"helpfulness": 3}}
    table = table_of(votes)
    first = without_own(table)[0]
    assert first == pytest.approx(np.mean([0.8, 0.5, 0.5, 1.0, 1.0]))


@pytest.fixture
def votes(tmp_path: Path) -> str:
    """Six rows: three annotators who agree, two who do not, one alone, a tie, yes/no labels, and ratings."""
    rows = [
        example(0, Pair(0, 1, 2.0, "ann"), Pair(0, 1, 1.0, "bo"), Pair(1, 0, 1.0, "cy")),
        example(1, Pair(0, 1, None, "ann"), Pair(1, 0, None, "bo")),
        example(2, Pair(1, 0, 3.0, "ann")),
        example(3, Ranking(((0, 1),), "ann"), Ranking(((0, 1),), "bo"), Pair(0, 1, None, "cy")),
        example(4, Binary(0, True, "ann"), Binary(0, True, "bo"), Binary(0, False, "cy"), Binary(1, False, "cy")),
        example(5, *(Rating(0, {"helpfulness": h, "verbosity": 1}, f"who {n}") for n, h in enumerate((4, 3, 0, 4)))),
        example(6, *(Rating(0, {"helpfulness": h}, who) for h, who in zip((4, 0, 2), "abc", strict=True))),
    ]  # fmt: skip
    return write(tmp_path / "votes.jsonl", rows)


def test_majority_writes_shares_and_says_what_it_drops(votes: str, tmp_path: Path, capsys):
    out, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    code, told = run(capsys, "aggregate", votes, "--out", str(out), "--method", "majority", "--summary", str(summary))
    assert code == 0
    rows = {each.prompt[0].content[-1]: each.feedback for each in load_examples(str(out)).examples}
    (pair,) = rows["0"]
    assert (pair.chosen, pair.rejected, pair.annotator, pair.share) == (0, 1, "majority", pytest.approx(2 / 3))
    assert pair.strength == pytest.approx((2 + 1 - 1) / 3)
    assert "1" not in rows and rows["2"] == (Pair(1, 0, 3.0, "majority", 1.0, 0.0),)
    assert rows["3"] == (Ranking(((0, 1),), "majority"),)
    assert rows["4"] == (Binary(0, True, "majority"), Binary(1, False, "majority"))
    assert rows["5"] == (Rating(0, {"helpfulness": 2.75, "verbosity": 1.0}, "mean"),)
    assert "dropped: 1: comparisons: as many, or as probable, for one as for the other" in told
    found = json.loads(summary.read_text())
    assert found["written"] == {"pair": 2, "ranking": 1, "binary": 2, "rating": 2}
    assert found["annotators"]["ann"]["comparisons"] == 4 and found["annotators"]["cy"]["labels"] == 2
    views, _ = pair_view(load_examples(str(out)).examples[:1], votes=True)
    assert views[0].feedback[0].share == pytest.approx(2 / 3)


def test_helpsteer2_keeps_the_closest_and_drops_what_is_apart(votes: str, tmp_path: Path, capsys):
    out = tmp_path / "out.jsonl"
    words = ("--method", "majority", "--ratings", "helpsteer2", "--least", "2")
    code, told = run(capsys, "aggregate", votes, "--out", str(out), *words)
    assert code == 0
    rows = {each.prompt[0].content[-1]: each.feedback for each in load_examples(str(out)).examples}
    assert rows["5"] == (Rating(0, {"helpfulness": 4.0, "verbosity": 1.0}, "helpsteer2"),) and "6" not in rows
    assert "ratings: the 3 closest ratings differ by more than 2" in told
    assert "2" not in rows and rows["4"] == (Binary(0, True, "majority"),)
    assert "comparisons: fewer than 2 votes" in told and "yes/no labels: fewer than 2 votes" in told


def crowd(seed: int = 0, rows: int = 150) -> tuple[list[Example], np.ndarray]:
    """Four good annotators, two careless ones, one who takes the left; three of them look at each row."""
    rng, made = np.random.default_rng(seed), []
    names, skill = ("a", "b", "c", "d", "careless1", "careless2", "left"), (3, 3, 3, 3, 0, 0, 1.5)
    gold = rng.random(rows) < 0.5
    for number in range(rows):
        feedback = []
        for who in rng.choice(7, 3, replace=False):
            swapped = rng.random() < 0.5
            toward = (1 if gold[number] else -1) * skill[who] * 0.7
            toward += (2.5 if not swapped else -2.5) * (names[who] == "left")
            first_wins = rng.random() < 1 / (1 + np.exp(-toward))
            chosen, rejected = (0, 1) if first_wins else (1, 0)
            shown = "chosen" if (chosen == 0) != swapped else "rejected"
            feedback.append(Pair(chosen, rejected, None, names[who], first=shown))
        made.append(example(number, *feedback, topic="even" if number % 2 else "odd"))
    return made, gold


@pytest.mark.parametrize("method", ["dawid-skene", "mace"])
def test_models_beat_votes_and_name_the_careless_and_the_biased(method: str, tmp_path: Path, capsys):
    rows, gold = crowd()
    file, right = write(tmp_path / "votes.jsonl", rows), {}
    for name in (method, "majority"):
        out, summary = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.json"
        assert run(capsys, "aggregate", file, "--out", str(out), "--method", name, "--summary", str(summary))[0] == 0
        found = {each.prompt[0].content: each.feedback[0] for each in load_examples(str(out)).examples}
        right[name] = np.mean([(found[f"question {n}"].chosen == 0) == better for n, better in enumerate(gold)])
    assert right[method] > right["majority"] + 0.03
    annotators = json.loads((tmp_path / f"{method}.json").read_text())["annotators"]
    skill = {name: each["right"] for name, each in annotators.items()}
    assert max(skill["careless1"], skill["careless2"]) < min(skill[name] for name in "abcd")
    told = run(capsys, "aggregate", file, "--out", str(tmp_path / "again.jsonl"), "--method", method)[1]
    assert "hardly better than chance" in told and "prefers the left" in told
    assert set(annotators) == {"a", "b", "c", "d", "careless1", "careless2", "left"}


def test_bradley_terry_reads_comparisons_alone(votes: str, tmp_path: Path, capsys):
    rows = [example(n, Ranking(((2,), (0,), (1,)), "a"), Ranking(((2,), (1,), (0,)), "b"), answers=3) for n in range(4)]
    out = tmp_path / "out.jsonl"
    ranked = write(tmp_path / "ranked.jsonl", rows)
    assert run(capsys, "aggregate", ranked, "--out", str(out), "--method", "bradley-terry")[0] == 0
    pairs = feedback_of(out)[0]
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {(2, 0), (2, 1)}
    assert all(0.5 < pair.share < 1 for pair in pairs)
    code, told = run(capsys, "aggregate", votes, "--out", str(tmp_path / "x.jsonl"), "--method", "bradley-terry")
    assert code == 2 and "yes/no labels" in told


def test_rows_of_the_same_answers_are_one_item(tmp_path: Path, capsys):
    """A row a vote, answers in either order, one row with a third answer: the same votes as if they stood together."""
    together = [
        example(n, *(Pair(int(who in "ab"[: n % 3]), int(who not in "ab"[: n % 3]), None, who) for who in "abc"))
        for n in range(6)
    ]
    apart = []
    for row in together:
        one, two, three = (
            Example(row.prompt, row.responses, (vote,), meta={"who": vote.annotator}) for vote in row.feedback
        )
        (vote,) = two.feedback
        turned = Example(row.prompt, row.responses[::-1], (Pair(1 - vote.chosen, 1 - vote.rejected, None, "b"),))
        longer = Example(row.prompt, (*row.responses, Response((Message("assistant", "third"),))), three.feedback)
        apart += [one, turned, longer]
    found = []
    for name, rows in (("together", together), ("apart", apart)):
        file, out, summary = (
            write(tmp_path / f"{name}.jsonl", rows),
            tmp_path / f"{name}-out.jsonl",
            tmp_path / "s.json",
        )
        assert run(capsys, "aggregate", file, "--out", str(out), "--summary", str(summary))[0] == 0
        found.append(feedback_of(out))
        assert json.loads(summary.read_text())["joined"] == len(rows) - len(together)
    assert found[0] == found[1] and len(found[0]) == 6
    # answers to the same prompt that share nothing stay apart, as does the same answer under another prompt
    alone = [example(0, Binary(0, True, "a"), answers=1), replace(example(1, Binary(0, True, "a"), answers=1))]
    other = Example(alone[0].prompt, (Response((Message("assistant", "else"),)),), (Binary(0, False, "a"),))
    assert len(one_row_each([*alone, other])) == 3
    twice = Example(alone[0].prompt, alone[0].responses * 2, (Pair(0, 1, None, "a"),))
    (joined,) = one_row_each([twice, twice])
    assert joined.feedback == twice.feedback * 2 and len(joined.responses) == 2  # two answers that say the same


def test_a_column_names_the_annotators(tmp_path: Path, capsys):
    file = tmp_path / "votes.csv"
    rows = [(n, who, who == "b" and n < 3) for n in range(20) for who in "abc"]
    lines = [f"q{n},{'no' if other else 'yes'},{'yes' if other else 'no'},{who}" for n, who, other in rows]
    file.write_text("\n".join(["prompt,chosen,rejected,worker", *lines]))
    out, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    code, told = run(capsys, "aggregate", str(file), "--out", str(out))
    assert code == 2 and "--annotator COLUMN" in told
    words = ("--annotator", "worker", "--summary", str(summary))
    assert run(capsys, "aggregate", str(file), "--out", str(out), *words)[0] == 0
    assert [row.responses[f.chosen].text for row in load_examples(str(out)).examples for f in row.feedback] == [
        "yes"
    ] * 20
    assert run(capsys, "agree", str(file), *words)[0] == 0
    (found,) = json.loads(summary.read_text())["questions"]
    assert found["twice"] == 20 and found["annotators"]["b"]["value"] == pytest.approx(17 / 20)
    code, told = run(capsys, "agree", str(file), "--annotator", "workr")
    assert code == 2 and "Perhaps you meant 'worker'" in told


def test_unnamed_feedback_is_one_annotator_unless_it_contradicts_itself(tmp_path: Path, capsys):
    people = [example(n, Pair(0, 1)) for n in range(12)]
    judged = [example(n, Pair(0, 1, None, "judge") if n % 4 else Pair(1, 0, None, "judge")) for n in range(12)]
    judge = write(tmp_path / "judge.jsonl", judged)
    summary = tmp_path / "agree.json"
    assert run(capsys, "agree", write(tmp_path / "p.jsonl", people), judge, "--summary", str(summary))[0] == 0
    (found,) = json.loads(summary.read_text())["questions"]
    assert found["annotators"].keys() == {"(no name)", "judge"}
    assert found["coefficients"]["observed agreement"]["value"] == pytest.approx(0.75)
    two = write(tmp_path / "two.jsonl", [*people, example(0, Pair(1, 0))])
    code, told = run(capsys, "agree", two, judge)
    assert code == 2 and "13 judgements name no annotator" in told and "judge (12)" in told


def test_a_table_with_a_row_for_each_label(tmp_path: Path, capsys):
    """The same numbers as of the table with a column for each annotator; what was given again counts once."""
    rng = np.random.default_rng(0)
    wide, long, summary = tmp_path / "wide.csv", tmp_path / "long.csv", tmp_path / "summary.json"
    labels = rng.choice(["yes", "no", " no ", "NaN", ""], (40, 3), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    wide.write_text("\n".join(["a,b,c", *(",".join(row) for row in labels)]))
    rows = [f"{n},{who},{cell}" for n, row in enumerate(labels) for who, cell in zip("abc", row, strict=True)]
    long.write_text("\n".join(["task,worker,label", "0,a,maybe", *rows]) + "\n0,a,yes\n0,,yes\n")
    wide.write_text(wide.read_text().replace(",".join(labels[0]), ",".join(["yes", *labels[0][1:]]), 1))
    found = []
    for file, words in (
        (wide, ("a", "b", "c")),
        (long, ("label", "--item", "task", "--annotator", "worker")),
    ):
        code, told = run(capsys, "agree", str(file), "--labels", *words, "--summary", str(summary))
        assert code == 0, told
        found.append(json.loads(summary.read_text()))
    one, other = (each["questions"][0] for each in found)
    assert one["coefficients"] == other["coefficients"] and one["annotators"].keys() == other["annotators"].keys()
    assert found[1]["repeated"]["labels"] >= 1 and found[1]["unnamed"] == 1
    assert one["ratings"] == int(np.isin(labels, ["yes", "no", " no "]).sum()) + (
        labels[0][0] not in ("yes", "no", " no ")
    )


def test_what_is_no_label_and_what_has_no_order(tmp_path: Path, capsys):
    file = tmp_path / "table.csv"
    for text, words, message in (
        ("a,b\nlow,high\nlow,low\n", ("--scale", "ordinal"), "words have no order"),
        ("a,b\n1,inf\n2,2\n", (), "an infinite number"),
        ("a,b\n1,1\n", ("--item", "a"), "give all three"),
        ("a,b\n", (), "no rows"),
    ):
        file.write_text(text)
        code, told = run(capsys, "agree", str(file), "--labels", "a", "b", *words)
        assert code == 2 and message in told, told
    file.write_text("a,b\n1,1\n2,2\n")
    code, told = run(capsys, "agree", str(file), "--labels", "a", "a")
    assert code == 2 and "an annotator each" in told
    code, told = run(capsys, "agree", str(file), "--labels", "a", "b")
    assert (
        code == 0 and "mislead" not in told and "1.000 (1.00" not in told
    )  # two items tell nothing of skew, or spread


def test_many_annotators_and_skew(tmp_path: Path, capsys):
    """Of pairs of annotators that hardly meet no kappa is told; what dominates is said with agreement on the rest."""
    rng = np.random.default_rng(0)
    rows = [
        example(n, *(Binary(0, bool(rng.random() < 0.95), f"who {a}") for a in rng.choice(200, 3, replace=False)))
        for n in range(300)
    ]
    summary = tmp_path / "summary.json"
    code, told = run(capsys, "agree", write(tmp_path / "rows.jsonl", rows), "--summary", str(summary))
    assert code == 0 and "one value makes 9" in told and "on the other values annotators agree in" in told
    (found,) = json.loads(summary.read_text())["questions"]
    kappa = found["coefficients"]["Cohen's κ, mean over pairs"]
    assert kappa["value"] is None and kappa["problem"] == "no two annotators share 10 items"
    assert len(found["annotators"]) > 150
    code, told = run(capsys, "aggregate", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert code == 0 and "hardly better than chance" not in told


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([example(0, Pair(0, 1)), example(1, Pair(0, 1))], (), "2 votes do not name their annotator"),
        ([example(0)], (), "no comparison, label or rating"),
        ([example(0, Pair(0, 1, None, "a"), Pair(1, 0, None, "b"))], ("--method", "majority"), "no label is left"),
        ([example(0, Pair(0, 1, None, "a"))], ("--sure", "1.5"), "--sure"),
        (
            [example(0, Rating(0, {"a": 1, "b": 2}, "x"))],
            ("--ratings", "helpsteer2"),
            "which attribute must be close? --by a or b",
        ),
        (
            [example(0, Rating(0, {"helpfulness": 1}, "x"))],
            ("--ratings", "helpsteer2", "--by", "helpfulnes"),
            "Perhaps you meant 'helpfulness'",
        ),
    ],
)
def test_what_cannot_be_aggregated(rows, words, message: str, tmp_path: Path, capsys):
    out = tmp_path / "out.jsonl"
    code, told = run(capsys, "aggregate", write(tmp_path / "rows.jsonl", rows), "--out", str(out), *words)
    assert code == 2 and message in told
    assert not out.exists()


def test_agreement_of_people_and_judge_in_two_files(tmp_path: Path, capsys):
    rows, _ = crowd(rows=60)
    people = write(tmp_path / "people.jsonl", rows)
    first = [each.feedback[0] for each in rows]
    turned = [  # the same answers in the other order
        Example(each.prompt, each.responses[::-1], (Pair(1 - f.chosen, 1 - f.rejected, None, "judge"),))
        for each, f in zip(rows, first, strict=True)
    ]
    judge, summary = write(tmp_path / "judge.jsonl", turned), tmp_path / "agree.json"
    code, told = run(capsys, "agree", people, judge, "--topic", "topic", "--summary", str(summary))
    assert code == 0 and "comparison: 60 of 60 items" in told
    (found,) = json.loads(summary.read_text())["questions"]
    assert set(found["annotators"]) == {"a", "b", "c", "d", "careless1", "careless2", "judge", "left"}
    assert found["annotators"]["judge"]["value"] > found["annotators"]["careless1"]["value"]
    same = np.mean([f.chosen == g.chosen for r, f in zip(rows, first, strict=True) for g in r.feedback])
    assert found["annotators"]["judge"]["value"] == pytest.approx(same)
    alpha = found["coefficients"]["Krippendorff's α (nominal)"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert set(found["topics"]) == {"even", "odd"}


def test_columns_of_a_table_and_what_misleads(tmp_path: Path, capsys, real_data: Path):
    file = real_data / "xstest_completions_mistralinstruct.csv"
    summary = tmp_path / "agree.json"
    words = ("--labels", "annotation_1", "annotation_2", "--topic", "type", "--summary", str(summary))
    code, told = run(capsys, "agree", str(file), *words)
    assert code == 0
    (found,) = json.loads(summary.read_text())["questions"]
    with file.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    same = np.mean([row["annotation_1"] == row["annotation_2"] for row in rows])
    assert found["coefficients"]["observed agreement"]["value"] == pytest.approx(same)
    part = found["topics"]["privacy_fictional"]
    assert part["observed agreement"]["value"] == pytest.approx(0.88)
    assert part["Krippendorff's α (nominal)"]["value"] < 0 and part["Gwet's AC1"]["value"] > 0.85
    assert "privacy_fictional" in told and "Read Gwet's AC" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", "one", "tow"), "--labels tow: "),
        (("--labels", "one"), "--labels names two columns or more, an annotator each"),
        (("--labels", "one", "two", "--topic", "kind"), "--topic kind: "),
        ((), "no two annotators have judged the same answers"),
    ],
)
def test_what_cannot_be_compared(words, message: str, tmp_path: Path, capsys):
    file = tmp_path / "table.csv"
    file.write_text("prompt,completion,one,two\np,c,yes,no\nq,d,yes,yes\n")
    code, told = run(capsys, "agree", str(file), *words)
    assert code == 2 and message in told
