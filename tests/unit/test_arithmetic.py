"""The example of word problems: what the generator promises, the way from data to table, GSM8K's rule on real rows."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from arithmetic import problems, run  # noqa: E402

from assent.data.formats import load_examples  # noqa: E402
from assent.errors import UserError  # noqa: E402
from assent.rewards.group import Group  # noqa: E402
from assent.rewards.rules import RuleReward, final_number, gold_number, numeric  # noqa: E402

FILES = [*problems.SHARES]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {file: problems.problems(file, 240, seed=3) for file in FILES}


# ---- the generator


def test_every_solution_is_right_and_in_the_format_of_gsm8k(rows):
    """Each calculation mark holds, each line starts from what the story or the line before says, and the last is it."""
    for row in (row for made in rows.values() for row in made):
        *lines, last = row["answer"].split("\n")
        assert row["steps"] == len(lines) in problems.STEPS
        numbers = {int(number) for number in re.findall(r"\d+", row["question"].replace("alf", "2"))}
        result = None
        for line in lines:
            found = re.fullmatch(r"[A-Z][a-z ]+ ((\d+)([-+*/])(\d+))=\$?<<\1=(\d+)>>\5\.", line)
            assert found, line
            a, sign, b, result = int(found[2]), found[3], int(found[4]), int(found[5])
            assert Fraction(result) == {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign], line
            assert {a, b} <= numbers, (row["question"], line)
            numbers.add(result)
        assert last == f"#### {result}" and 0 < result <= 200


def test_what_a_story_says_is_what_its_solution_does(rows):
    """The sentences of the question, read by themselves, ask for the signs of the solution in their order."""
    words = {
        "+": r"more\b(?! \w+ (?:does|do)\b)|another|at home and|on Monday and",
        "-": r"gives \d+ to|loses|takes \d+ of|wants to have",
        "*": r"\d \w+ each|\d \w+ in each|for \$\d|worth \$",
        "/": r"[Hh]alf of them|equally among|as many in each",
    }
    signs = {re.compile(pattern): sign for sign, pattern in words.items()}
    for row in rows["rl"]:
        sentences = re.split(r"(?<=[.?]) ", row["question"])
        asked = [sign for sentence in sentences for pattern, sign in signs.items() if pattern.search(sentence)]
        assert asked == re.findall(r"\d([-+*/])\d+=", re.sub(r"<<.*?>>", "", row["answer"])), row


def test_files_share_no_story_with_the_same_numbers(rows, monkeypatch):
    keys: dict[str, set[str]] = {}
    true_row = problems.row

    def noted(made: problems.Story) -> dict[str, object]:
        keys[file].add(made.key)
        return true_row(made)

    monkeypatch.setattr(problems, "row", noted)
    for file in FILES:
        keys[file] = set()
        assert problems.problems(file, 240, seed=3) == rows[file], "the same seed makes the same rows"
        assert all(problems.home(key) == file for key in keys[file])
    assert not keys["sft"] & keys["test"] and not keys["rl"] & keys["test"] and not keys["sft"] & keys["rl"]
    assert problems.problems("test", 240, seed=4) != rows["test"]
    counts = Counter(problems.home(f"story {number}") for number in range(4000))
    assert all(abs(counts[file] / 4000 - share) < 0.03 for file, share in problems.SHARES.items())


def test_questions_are_different_and_as_many_of_each_number_of_steps(rows, monkeypatch):
    for made in rows.values():
        assert Counter(row["steps"] for row in made) == dict.fromkeys(problems.STEPS, 80)
    assert [row["steps"] for row in rows["rl"][:12]] != [1, 2, 3] * 4, "shuffled"
    for names in ("HE", "SHE", "THINGS", "HOLDERS"):  # so few words that stories come again
        monkeypatch.setattr(problems, names, ["Tom"])
    few = problems.problems("test", 240, seed=3)
    assert len({row["question"] for row in few}) == len(few)


def test_more_rows_than_there_are_stories_is_an_error(monkeypatch):
    monkeypatch.setattr(problems, "STEPS", (1,))
    monkeypatch.setattr(problems, "TRIES", 2)
    with pytest.raises(UserError, match=r"test\.jsonl: found only \d+ different questions of the 300 asked for"):
        problems.problems("test", 300, seed=0)


def test_files_are_read_as_gsm8k_with_steps_and_a_gold_answer(tmp_path):
    problems.write(tmp_path, {"sft": 30, "rl": 30, "test": 30}, seed=0)
    for file in FILES:
        examples = load_examples(tmp_path / f"{file}.jsonl").examples
        assert len(examples) == 30
        RuleReward("numeric").check(examples)
        for example in examples:
            assert "<<" not in example.responses[0].text and example.meta["steps"] in problems.STEPS
            assert numeric(example.responses[0].text, example.meta["answer"]) == 1.0
            assert numeric(f"#### {int(example.meta['final_answer']) + 1}", example.meta["answer"]) == 0.0


def test_no_token_joins_digits(tmp_path):
    from assent.models.init import train_tokenizer

    problems.write(tmp_path, {"sft": 300}, seed=0)
    words = load_examples(tmp_path / "words.jsonl").examples
    texts = [text for e in words for text in (e.prompt[0].content, e.responses[0].text)]
    assert not any(character.isdigit() for text in texts for character in text)
    tokenizer = train_tokenizer(texts, 480)
    tokens = tokenizer.tokenize("Now there are 57+9=66.\nThey bring 4*12=$48.\n#### 1066")
    assert [token for token in tokens if any(map(str.isdigit, token))] == list("57966412481066")
    assert len(tokens) < 40, "words are still whole"


def test_calculations_are_right_asked_for_in_half_of_the_rows_and_cover_the_stories(rows):
    made = problems.calculations(3000, seed=3)
    known = set()
    for row in made:
        *lines, last = row["answer"].split("\n")
        assert 2 <= len(lines) <= 5 and last == f"#### {lines[-1][:-1].partition('=')[2]}"
        asked = re.findall(r"\d+[-+*/]\d+", row["question"])
        assert asked in ([], [line.partition("=")[0] for line in lines])
        for line in lines:
            a, sign, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)\.", line).groups()
            a, b, result = int(a), int(b), int(result)
            assert result == {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign], line
            known.add(line[:-1])
    assert sum("Work out" in row["question"] for row in made) == 1500
    told = [fact for row in rows["test"] for fact in re.findall("<<(.*?)>>", row["answer"])]
    assert sum(fact in known for fact in told) > 0.99 * len(told)


# ---- from data to table


def test_the_table_has_wilson_intervals_by_number_of_steps():
    half = [(1, True)] * 40 + [(2, True)] * 10 + [(2, False)] * 30 + [(3, False)] * 20
    page = run.table({"sft": {"greedy": half, "sampled": half[::-1]}, "grpo": {"greedy": half[:40], "sampled": half}})
    head, _, sft, grpo = page.splitlines()
    assert head == "| policy | greedy | sampled | 1 step | 2 steps | 3 steps |"
    # 50 of 100: Wilson's interval is 50 % ± 9.6 %.
    assert sft == "| sft | 50.0 (40.4 to 59.6) | 50.0 (40.4 to 59.6) | 100 | 25 | 0 |"
    assert grpo.startswith("| grpo | 100.0 (91.2 to 100.0) | 50.0 (40.4 to 59.6) | 100 | nan | nan |")


def test_from_data_to_table_and_nothing_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "LONGEST", 16)
    monkeypatch.setattr(run, "ONLINE", tuple(word.replace("64", "16") for word in run.ONLINE))
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--scale", "0.002", "--methods", "grpo", "easy-first"]
    assert run.main(arguments) == 0
    page = capsys.readouterr().out
    heads = [line.split(" | ")[0] for line in page.splitlines()]
    assert heads[-5:] == ["| policy", "| ---", "| sft", "| grpo", "| easy-first"]
    assert (out / "table.md").read_text() in page
    metrics = [json.loads(line) for line in (out / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["reward"] <= 1 for row in metrics if "reward" in row) and metrics[-1]["step"] >= 4
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "table.md"}
    assert run.main(arguments) == 0
    assert written == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "table.md"}


def test_a_folder_of_another_scale_and_a_stopped_command(tmp_path, monkeypatch, capsys):
    run.claim(tmp_path / "a", {"scale": 1.0, "seed": 0})
    assert run.main(["--out", str(tmp_path / "a"), "--scale", "0.5"]) == 2
    assert "was made with {'scale': 1.0, 'seed': 0}" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(SystemExit):
        run.main(["--out", str(tmp_path / "a"), "--scale", "0"])
    asked = []
    monkeypatch.setattr(run, "command", lambda words: asked.append(words[0]) or 130)
    assert run.main(["--out", str(tmp_path / "b"), "--scale", "0.01"]) == 130
    assert asked == ["init"], "nothing goes on after a command that was stopped"
    monkeypatch.setattr(run, "command", lambda words: 2)
    assert run.main(["--out", str(tmp_path / "c"), "--scale", "0.01"]) == 2


# ---- GSM8K's rule on rows of GSM8K

GOLD = {
    2: "3", 4: "540", 6: "64", 8: "160", 9: "45", 10: "460", 11: "366", 12: "694", 14: "18", 15: "60", 16: "125",
    17: "230", 18: "57500", 19: "7", 22: "14", 23: "7", 24: "8", 25: "26", 250: "5600", 490: "-10", 506: "1600",
    611: "65960", 612: "1450000", 641: "43500", 643: "10800", 820: "6250", 830: "14000", 998: "6600", 1010: "1875",
    1114: "-3", 1207: "40000",
}  # fmt: skip
"""Line of gsm8k_test.jsonl and its answer, read from the row by eye: commas, dollars and signs as plain digits."""

SAID = [
    # line, answer, whether it is right
    (2, "It takes 2 bolts of blue and 1 of white: 3", 1),
    (2, "It takes 3 bolts, of which 2 are blue", 0),  # the right number, but not last
    (6, "8 glasses cost $5 and 8 cost $3, so $64.00", 1),
    (6, "#### $64", 1),
    (6, "The answer is 64.5.", 0),
    (8, "#### 160 minutes, or 2 hours 40 minutes", 1),  # after the mark the first number counts
    (8, "160 minutes, or 2 hours 40 minutes", 0),
    (15, "This is 60%.", 1),
    (15, "60 %", 1),
    (15, "It is 0.6 of them", 0),
    (16, "He will choose jewelry, with a profit of $125", 1),
    (16, "$125 > $96", 0),
    (18, "Her annual salary is $57,500.", 1),
    (18, "$57,500.00", 1),
    (18, "57.500", 0),
    (18, "#### 57500\n", 1),
    (25, "Dividing both sides by .75, X = $26.", 1),
    (25, "78/3", 1),
    (25, "$26 - no, wait: 19.50", 0),
    (250, "5,600 more calories", 1),
    (250, "5, 600", 0),
    (490, "The average is -10 degrees.", 1),
    (490, "The average is 10 degrees.", 0),
    (612, "1,350,000+100,000=$1,450,000", 1),
    (612, "1.45 million", 0),
    (1010, "3000-1125=1875 female students", 1),
    (1010, "3000-1125=<<3000-1125=1875>>1874", 0),  # what stands in a calculator's mark does not count
    (1114, "#### -3", 1),
    (1114, "#### 3", 0),
    (1207, "He has $40,000 leftover", 1),
    (1207, "forty thousand", 0),
    (1207, "", 0),
]


@pytest.fixture(scope="module")
def gsm8k(real_data):
    return load_examples(real_data / "gsm8k_test.jsonl").examples


def test_gold_answers_of_gsm8k_are_the_numbers_that_a_person_reads(gsm8k):
    assert len(GOLD) >= 25
    for line, number in GOLD.items():
        example = gsm8k[line - 1]
        assert example.origin.row == line
        assert gold_number(example.meta["answer"]) == Fraction(number), line
        assert final_number(example.responses[0].text) == Fraction(number), line


@pytest.mark.parametrize("mark", ["#### {}", "The answer is {}.", "${}.00", "{} eggs", "**{}**", "so x = {}\n"])
def test_answers_to_gsm8k_in_the_ways_that_models_write_them(gsm8k, mark):
    rule = RuleReward("numeric")
    for line, number in GOLD.items():
        wrong = str(int(number) + 1)
        commas = f"{int(number):,}"
        texts = tuple(f"16 - 9 = 7. {mark.format(said)}" for said in (number, commas, wrong, "-" + number.lstrip("-")))
        scores = rule.score([Group(gsm8k[line - 1], texts, (True,) * 4, (9,) * 4)]).values.tolist()
        assert scores == [1.0, 1.0, 0.0, float(int(number) < 0)], (line, texts)


def test_answers_to_gsm8k_judged_by_hand(gsm8k):
    rule = RuleReward("numeric")
    for line, text, right in SAID:
        score = rule.score([Group(gsm8k[line - 1], (text,), (True,), (9,))]).values.tolist()
        assert score == [float(right)], f"line {line}: {text!r}, gold {GOLD[line]}"
