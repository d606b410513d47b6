"""`assent curate`: repeats, languages, code, evaluation sets, topics and complexity, against brute force."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.config import CurateConfig
from assent.config.curate import TopicsConfig
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Origin, Pair, Ranking, Rating, Response
from assent.errors import ConfigError, DataError, ModelError
from assent.people.curate import duplicates, language
from assent.people.curate.against import Sets, overlapping
from assent.people.curate.code import code_in
from assent.people.curate.complexity import as_request, by_features, ranks
from assent.people.curate.duplicates import EXACT, NEAR, exact, jaccard, near, plan, runs
from assent.people.curate.pairs import only, worth_of
from assent.people.curate.run import curate
from assent.people.curate.texts import plain, plain_words
from assent.people.curate.topics import topics_of

REAL = os.environ.get("ASSENT_REAL_DATA")
PARTS = (
    "the old mill", "a quiet river", "seven grey horses", "our tall neighbour", "this broken clock", "every small town",
    "the northern road", "her first letter", "a wooden bridge", "the last winter",
)  # fmt: skip
VERBS = ("describes", "follows", "repairs", "remembers", "crosses", "paints", "measures", "forgets")


def asks(text: str, row: int = 0, system: str = "", earlier: tuple[str, ...] = ()) -> Example:
    turns = [Message("system", system)] if system else []
    for number, said in enumerate(earlier):
        turns.append(Message("assistant" if number % 2 else "user", said))
    return Example((*turns, Message("user", text)), origin=Origin("f", row))


def sentence(rng: random.Random, parts: int = 5) -> str:
    return ". ".join(f"{rng.choice(PARTS)} {rng.choice(VERBS)} {rng.choice(PARTS)}" for _ in range(parts)) + "?"


def write(path: Path, *examples: Example) -> str:
    path.write_text("".join(json_line(to_row(each)) for each in examples))
    return str(path)


def run(folder: Path, *words: str, code: int = 0) -> list[dict]:
    out = folder / "out.jsonl"
    assert main(["curate", *words, "--out", str(out)]) == code
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


# ---- repeats


def test_equal_prompts_by_construction():
    base = asks("What  is\nthe capital of France?", 1)
    rows = [
        base,
        asks("what is the capital of FRANCE?", 2),  # case and blanks
        asks("what is the capital of france？", 3),  # a wide question mark: NFKC
        asks("What is the capital of France?", 4, system="Be brief."),  # another system message
        asks("What is the capital of France?", 5, earlier=("Hi", "Hello")),  # other turns before
        asks("What is the capital of Francia?", 6),
    ]
    fates = exact(rows)
    assert [fate and fate.of.row for fate in fates] == [None, 1, 1, None, None, None]
    assert all(fate.reason == EXACT for fate in fates if fate)
    tools = [base, Example(base.prompt, tools="[]")]
    assert exact(tools) == [None, None]


def brute(one: str, other: str) -> float:
    sets = []
    for text in map(plain, (one, other)):
        width = min(5, len(text))
        sets.append({text[i : i + width] for i in range(len(text) - width + 1)} if text else set())
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0


def test_jaccard_equals_brute_force():
    rng = random.Random(1)
    texts = ["", "a", "ab", "abcd", "abcde", "abcdef", "你好吗，世界", "A\u0301bc de", "x" * 40]
    texts += [sentence(rng, rng.randint(1, 3)) for _ in range(20)]
    for one in texts:
        for other in texts:
            assert jaccard(runs(one), runs(other)) == pytest.approx(brute(one, other), abs=1e-12)


def test_near_repeats_are_those_that_brute_force_finds(monkeypatch):
    """Greedy in order, as brute force would: a row is left out where it is like one that is kept."""
    rng = random.Random(2)
    rows = [asks(sentence(rng, 3), row) for row in range(70)]
    for row in range(70, 150):
        words = rng.choice(rows[:70]).prompt[-1].content.split()
        for _ in range(rng.randint(1, 4)):
            words[rng.randrange(len(words))] = rng.choice(("indeed", "perhaps", "never"))
        rows.append(asks(" ".join(words), row))
    kept: list[Example] = []
    expected = []
    for row in rows:
        like = max((brute(row.prompt[-1].content, other.prompt[-1].content) for other in kept), default=0.0)
        expected.append(like >= 0.7)
        kept += [] if like >= 0.7 else [row]
    fates = near(rows, 0.7)
    assert [fate is not None for fate in fates] == expected and 20 < sum(expected) < 75
    for row, fate in zip(rows, fates, strict=True):
        if fate is not None:
            assert fate.reason == NEAR and fates[fate.of.row] is None and fate.of.row < row.origin.row
            again = brute(row.prompt[-1].content, rows[fate.of.row].prompt[-1].content)
            assert fate.notes["similarity"] == pytest.approx(again, abs=1e-4) and again >= 0.7


def test_shared_hashes_estimate_the_similarity():
    """As independent permutations would: without bias, and with the spread of a binomial."""
    rng = random.Random(3)
    texts, values = [], []
    while len(values) < 400:
        one = sentence(rng, 2)
        words = one.split()
        for _ in range(rng.randint(1, 6)):
            words[rng.randrange(len(words))] = f"odd{rng.randrange(1000)}"
        texts += [one, " ".join(words)]
        values.append(jaccard(runs(texts[-2]), runs(texts[-1])))
    assert max(values) < 1
    hashes = duplicates.signatures(texts)
    shares, true = (hashes[::2] == hashes[1::2]).mean(axis=1), np.array(values)
    z = (shares - true) / np.sqrt(true * (1 - true) / duplicates.PERMUTATIONS)
    assert abs(z.mean()) < 0.2 and 0.85 < z.std() < 1.15
    alone = [duplicates.signatures([text])[0] for text in (*texts[:20], "", "ab")]
    np.testing.assert_array_equal(duplicates.signatures([*texts[:20], "", "ab"]), alone)


def test_candidates_are_those_of_datasketch():
    """The same bands over the same hashes give the pairs that its MinHashLSH gives."""
    datasketch = pytest.importorskip("datasketch")
    rng = random.Random(3)
    how = plan(0.6)
    texts = [sentence(rng, 2) for _ in range(120)]
    index = datasketch.MinHashLSH(num_perm=how.permutations, params=(how.bands, how.rows))
    hashes = duplicates.signatures(texts)
    made = [
        datasketch.MinHash(num_perm=how.permutations, scheme="affine32", hashvalues=row.astype(np.uint64))
        for row in hashes
    ]
    for number, each in enumerate(made):
        index.insert(number, each)
    bands = duplicates._shared_bands(hashes, how)
    for number, each in enumerate(made):
        own = {other for other in range(len(texts)) if set(bands[other]) & set(bands[number])} | {number}
        assert own == set(index.query(each))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_the_plan_finds_what_it_says(threshold: float):
    how = plan(threshold)
    assert how.bands * how.rows <= duplicates.PERMUTATIONS and how.found >= 0.99
    assert how.found == pytest.approx(1 - (1 - threshold**how.rows) ** how.bands)


def test_system_messages_are_compared_by_themselves():
    long = "You are a helpful assistant who answers in the style of an old newspaper. " * 5
    rows = [
        asks("Who is it?", 1, system=long),
        asks("Why so late?", 2, system=long),
        asks("Who is it?", 3, system="Rhyme!"),
    ]
    assert near(rows, 0.8) == [None, None, None]
    rows.append(asks("Who is it??", 4, system=long + "!"))
    assert near(rows, 0.8)[3].of.row == 1


# ---- languages and code

TEXTS = {
    "en": "Could you tell me how the weather will be tomorrow morning in the mountains?",
    "de": "Kannst du mir bitte erklären, warum der Himmel am Abend rot wird?",
    "fr": "Pourriez-vous m'expliquer pourquoi le ciel devient rouge le soir ?",
    "es": "¿Puedes explicarme por qué el cielo se vuelve rojo por la tarde?",
    "zh": "你能告诉我为什么傍晚天空会变红吗？我想知道其中的科学原理。",
    "ru": "Можешь объяснить, почему вечером небо становится красным?",
    "ja": "夕方になると空が赤くなるのはなぜですか。教えてください。",
    "el": "Μπορείς να μου εξηγήσεις γιατί ο ουρανός κοκκινίζει το βράδυ;",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages(code: str):
    told = language.tell(TEXTS[code], 0.5)
    assert (told.language, told.code) == (code, "") and told.confidence > 0.5


def test_what_is_not_told_stays_unless_its_script_is_another():
    inuktitut = "ᓄᓇᕗᑦ?"
    texts = [TEXTS["en"], TEXTS["de"], "Calculate 15% of 500.", inuktitut, "7 * 8 = ?", "👍"]
    found = [language.tell(text, 0.5) for text in texts]
    assert [each.language for each in found] == ["en", "de", "und", "und", "zxx", "zxx"]
    why = [fate and fate.reason for fate in language.by_language(found, ("en",))]
    assert why == [
        None, "in another language: de", None, "in a language that is not told, in canadian script", None, None,
    ]  # fmt: skip
    assert language.by_language(found, ()) == [None] * 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fix this:\n```\nx = 1\n```", "holds code"),
        ("def add(a, b):\n    return a + b", "holds code"),
        ("Explain:\nfor (int i = 0; i < n; i++) {\n  sum += a[i];\n}", "holds code"),
        ("SELECT name FROM users WHERE age > 3", "holds code"),
        ("Write a Python script that renames files.", "about programming"),
        ("Write a function to find whether a given year is a leap year.", "about programming"),
        ("What is a regular expression?", "about programming"),
        ("Ruby is 6 times older than Sam. How old is Sam?", ""),
        ("What are the functions of mitochondria in the human body?", ""),
        ("Write a script of a sales call.", ""),
        ("Options:\n * difficult;\n * loud;\n * easy;", ""),
        ("Plan an exercise program for three days (Monday, Tuesday; Friday).", ""),
        ("Solve -1387*i = 743*i + 223905 for i.", ""),
    ],
)
def test_code(text: str, expected: str):
    assert code_in(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "How do I center a div?", "Why is my for loop running forever?", "Explain async/await in Rust.",
        "How to reverse a string in Go?", "用Python写一个冒泡排序", "Schreibe eine Python-Funktion für Primzahlen.",
        "TypeError: 'NoneType' object is not subscriptable - how do I fix it?", "Write a Dockerfile for a Flask app.",
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\nKeyError', "How do I end a C program?",
        "Construct a query to retrieve data from a database.", "Can you refactor this method to use streams?",
        'Give the output of this.\nitems = ["apple", "orange"]\nprint(items[1])', "Implement a binary search tree.",
    ],
)  # fmt: skip
def test_programming_is_told(text: str):
    assert code_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "Is java coffee stronger than arabica?", "else: a poem about otherness", "Which code of conduct applies?",
        "Design a training program to teach employees to read files and reports.", "I rust my bike in C major.",
        "<b>Important</b>: please summarise the following paragraph.", "Is there a genetic code that sorts species?",
        "Solve for x: f(x) = 3x^2 - 5; g(x) = x + 1;", "A train leaves at 3:00; another at 4:30; when do they meet?",
        "Go to the shop and buy three apples; two pears; and a melon.", "The string section is too loud.",
    ],
)  # fmt: skip
def test_what_only_sounds_like_programming(text: str):
    assert not code_in(text)


def test_code_is_no_language():
    code = "def f(x):\n    return x + 1\n"
    assert language.tell(code * 3, 0.5).language == "zxx"
    german = language.tell("Was macht dieser Code, und warum ist er so langsam?\n```\n" + code * 30 + "```", 0.5)
    assert (german.language, german.code) == ("de", "holds code")


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "(" * 10**6, "<a>" * 10**5, "a=(" * 10**5, "return a " * 10**5, "\n;" * 10**5]
)
def test_hostile_texts_take_no_longer(text: str):
    begun = time.process_time()
    language.tell(text, 0.5)
    assert time.process_time() - begun < 10


# ---- evaluation sets


def grams(words: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_overlap_equals_brute_force():
    rng = random.Random(4)
    vocabulary = [f"w{n}" for n in range(60)]
    evaluated = [asks(" ".join(rng.choices(vocabulary, k=rng.randint(3, 40))), row) for row in range(60)]
    rows = []
    for row in range(300):
        words = rng.choices(vocabulary, k=rng.randint(2, 40))
        if row % 3 == 0:  # part of an evaluation prompt of some length, or all of it
            source = rng.choice(evaluated).prompt[-1].content.split()
            start = rng.randrange(len(source))
            part = source if row % 6 == 0 else source[start : start + rng.randint(5, 20)]
            place = rng.randrange(len(words) + 1)
            words = part if row % 12 == 0 else words[:place] + part + words[place:]
        rows.append(asks(" ".join(words) + "!", 100 + row))
    sets = Sets(13)
    sets.add("eval", evaluated)
    fates, numbers = overlapping(rows, sets)
    expected = []
    for row in rows:
        own = plain_words(row.prompt[-1].content)
        hit = False
        for other in (plain_words(each.prompt[-1].content) for each in evaluated):
            hit |= (
                own == other
                if len(other) < 8
                else bool(grams(own, min(13, len(other))) & grams(other, min(13, len(other))))
            )
        expected.append(hit)
    assert [fate is not None for fate in fates] == expected and 20 < sum(expected) < 150
    assert numbers["eval"].dropped == sum(expected) and numbers["eval"].prompts == 60
    shared = [
        any(
            mine == own if len(own) < 8 else grams(mine, min(13, len(own))) & grams(own, min(13, len(own)))
            for mine in (plain_words(row.prompt[-1].content) for row in rows)
        )
        for own in (plain_words(each.prompt[-1].content) for each in evaluated)
    ]
    assert numbers["eval"].found == sum(shared)  # all of them, not the first for each row alone
    assert numbers["eval"].equal == sum(len(e.prompt[-1].content.split()) < 8 for e in evaluated)
    for fate in filter(None, fates):
        source = " ".join(plain_words(evaluated[fate.of.row].prompt[-1].content))
        assert f" {fate.notes['words']} " in f" {source} "


# ---- topics and complexity

SUBJECTS = {
    "cooking": "recipe oven flour butter sugar dough bake cake bread kitchen".split(),
    "football": "goal striker referee league stadium penalty coach defender match team".split(),
    "space": "planet orbit rocket galaxy astronaut telescope comet moon gravity star".split(),
}


def subjects(count: int = 40) -> tuple[list[str], list[str]]:
    rng = random.Random(5)
    names = [name for name in SUBJECTS for _ in range(count)]
    return names, ["Tell me of " + " and ".join(rng.sample(SUBJECTS[name], 4)) for name in names]


def test_topics_are_the_subjects_and_have_words_for_names():
    names, texts = subjects()
    found = topics_of(texts, TopicsConfig(number=3), 0)
    by_topic = {topic: {n for n, t in zip(names, found.of_rows(), strict=True) if t == topic} for topic in found.names}
    assert len(by_topic) == 3 and all(len(own) == 1 for own in by_topic.values())
    for topic, (own,) in by_topic.items():
        assert set(topic.split()[1:]) <= set(SUBJECTS[own])
    np.testing.assert_array_equal(found.labels, topics_of(texts, TopicsConfig(number=3), 0).labels)


def test_fewer_topics_than_asked_for_are_said(caplog):
    found = topics_of(["the same words"] * 30, TopicsConfig(number=5), 0)
    assert len(found.names) == 1 and "--topics.number 5: 1 topics were found" in caplog.text
    assert len(topics_of(["?", "!", ""], TopicsConfig(), 0).names) == 1
    assert topics_of(["a b", "c d"], TopicsConfig(method="none"), 0).names == ("all",)


def test_an_optional_package_is_named(monkeypatch, tmp_path, caplog):
    file = write(tmp_path / "p.jsonl", asks("Who?"))
    monkeypatch.setitem(sys.modules, "bertopic", None)
    assert run(tmp_path, file, "--topics.method", "bertopic", code=2) == []
    assert "--topics.method bertopic needs a package" in caplog.text and "pip install 'assent[topics]'" in caplog.text
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run(tmp_path, file, code=2) == [] and "pip install 'assent[people]'" in caplog.text


class FakeBERTopic:
    """Its documented interface, for tests where the package is not installed."""

    labels: list[int] = []
    asked: dict = {}

    def __init__(self, language, **options):
        self.asked |= {"language": language, **options}

    def fit_transform(self, texts, embeddings):
        self.asked["shape"] = embeddings.shape
        return list(self.labels), None

    def reduce_topics(self, texts, nr_topics):
        self.asked["nr_topics"] = nr_topics
        self.topics_ = [min(label, 1) for label in self.labels]


@pytest.fixture
def bertopic(monkeypatch) -> type[FakeBERTopic]:
    monkeypatch.setitem(sys.modules, "bertopic", types.SimpleNamespace(BERTopic=FakeBERTopic))
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=lambda **options: options))
    monkeypatch.setattr(FakeBERTopic, "asked", {})
    return FakeBERTopic


def test_outliers_of_bertopic_go_to_the_nearest_topic(bertopic, monkeypatch):
    names, texts = subjects(10)
    known = [list(SUBJECTS).index(name) for name in names]
    monkeypatch.setattr(bertopic, "labels", [-1 if place % 10 == 0 else label for place, label in enumerate(known)])
    found = topics_of(texts, TopicsConfig(number=3, method="bertopic"), 0)
    assert found.labels.tolist() == known and "nr_topics" not in bertopic.asked
    assert bertopic.asked["shape"][0] == 30 and bertopic.asked["umap_model"]["random_state"] > 0
    assert bertopic.asked["min_topic_size"] == 5


@pytest.mark.parametrize("outliers", [0, 1])
def test_more_topics_of_bertopic_than_asked_for_are_joined(outliers: int, bertopic, monkeypatch):
    _, texts = subjects(10)
    monkeypatch.setattr(bertopic, "labels", [-1] * outliers + [place // 10 for place in range(30 - outliers)])
    found = topics_of(texts, TopicsConfig(number=2, method="bertopic"), 0)
    assert bertopic.asked["nr_topics"] == 2 + outliers and len(found.names) == 2


def test_bertopic_that_finds_nothing(bertopic, monkeypatch):
    _, texts = subjects(10)
    monkeypatch.setattr(bertopic, "labels", [-1] * 30)
    assert len(topics_of(texts, TopicsConfig(number=2, method="bertopic"), 0).names) == 1


def test_real_bertopic(monkeypatch):
    """Subjects come apart, the same ones again; few texts, texts without words, other scripts; nothing is asked from
    outside."""
    pytest.importorskip("bertopic")

    def refused(*_: object) -> None:
        raise AssertionError("it asks somebody")

    monkeypatch.setattr("socket.socket.connect", refused)
    names, texts = subjects(20)
    config = TopicsConfig(number=3, method="bertopic")
    found = topics_of(texts, config, 0)
    for name in SUBJECTS:
        (topic, most), *_ = Counter(t for n, t in zip(names, found.of_rows(), strict=True) if n == name).most_common()
        assert most >= 18, (name, topic)
    np.testing.assert_array_equal(found.labels, topics_of(texts, config, 0).labels)
    for few in range(2, 33, 5):
        assert len(topics_of(texts[:few], config, 0).labels) == few
    chinese = ["为什么傍晚天空会变红", "怎么做红烧肉好吃", "谁写了红楼梦", "北京今天天气怎么样"] * 10
    for odd in (chinese, ["?", "!", "a", "b 7"] * 10, texts[:30] + ["?"] * 30):
        assert len(topics_of(odd, config, 0).labels) == len(odd)


def test_complexity_by_features_is_a_mean_of_ranks():
    np.testing.assert_allclose(ranks(np.array([3.0, 1.0, 1.0, 2.0])), [0.875, 0.25, 0.25, 0.625])
    rows = [
        asks("Hi."),
        asks("Hi there."),
        asks("Compare, in 3 steps: (a) photosynthesis; (b) osmosis, with 2 sources?"),
    ]
    values = by_features(rows).values
    assert values[0] < values[1] < values[2] and by_features([]).values == []


def test_a_judge_is_shown_the_last_turn_as_the_request():
    talk = asks("And then?", earlier=("First?", "One."))
    request = as_request(talk)
    assert request.prompt == talk.prompt[:2] and request.responses[0].text == "And then?"
    assert as_request(asks("Alone")).prompt[0].content == "(this is the first message)"


# ---- pairs


def test_what_a_pair_is_worth():
    sigmoid = lambda x: 1 / (1 + np.exp(-np.array(x)))  # noqa: E731
    assert worth_of("disagreement", np.array([1.0, -2.0])) == pytest.approx(np.std(sigmoid([1.0, -2.0])))
    assert worth_of("margin", np.array([1.0, -2.0])) == pytest.approx(-0.5)
    assert np.isnan(worth_of("margin", np.array([1.0, np.nan])))


def test_a_row_with_two_answers_keeps_what_is_said_of_them():
    texts = tuple(Response((Message("assistant", text),)) for text in "abcd")
    said = (Pair(3, 1), Pair(0, 1), Ranking(((2,), (3, 0), (1,))), Rating(3, {"x": 1.0}), Rating(0, {"x": 2.0}))
    found = only(Example((Message("user", "q"),), texts, said), (3, 1))
    assert [response.text for response in found.responses] == ["b", "d"]
    assert found.feedback == (Pair(1, 0), Ranking(((1,), (0,))), Rating(1, {"x": 1.0}))


MODELS = """
def first(prompts, completions, **columns):
    return [float(answer[-1]["content"].count("a")) for answer in completions]

def second(prompts, completions, **columns):
    return [float(answer[-1]["content"].count("b")) for answer in completions]

def silent(prompts, completions, **columns):
    return [None] * len(completions)
"""


def answered(path: Path) -> str:
    def row(number: int, *answers: str) -> Example:
        return Example(
            (Message("user", f"Question {number}"),), tuple(Response((Message("assistant", a),)) for a in answers)
        )

    return write(path, row(0, "a", "b"), row(1, "aa", "ab", "bb"), row(2, "ab", "ba"), row(3, "x"), row(4, "y", "y"))


@pytest.mark.parametrize(
    ("how", "best"), [("disagreement", ("Question 1", ["aa", "bb"])), ("margin", ("Question 0", ["a", "b"]))]
)
def test_pairs_that_say_most_come_first(tmp_path: Path, how: str, best: tuple, caplog):
    (tmp_path / "m.py").write_text(MODELS)
    sources = [f"{tmp_path}/m.py:first", f"{tmp_path}/m.py:second"]
    words = ["--filter.near", "1", "--choose.pairs", how, "--choose.source", *sources, "--dropped", str(tmp_path / "d")]
    rows = run(tmp_path, answered(tmp_path / "p.jsonl"), *words, "--choose.budget", "2")
    assert len(rows) == 2 and all(len(row["responses"]) == 2 for row in rows)
    if how == "margin":  # all margins of a, b and of aa, bb and of ab, ba are 0: in the order of the file
        assert [row["meta"]["margin"] for row in rows] == [0.0, 0.0]
    else:
        assert rows[0]["meta"][how] == pytest.approx(np.std(1 / (1 + np.exp([-2.0, 2.0]))), abs=1e-5)
    got = rows[0]["prompt"][-1]["content"], [answer["messages"][0]["content"] for answer in rows[0]["responses"]]
    assert got == best
    why = Counter(json.loads(line)["reason"] for line in (tmp_path / "d").read_text().splitlines())
    assert why == {"fewer than two different answers": 2, "other pairs say more": 1}


def test_pairs_without_opinions(tmp_path: Path, caplog):
    (tmp_path / "m.py").write_text(MODELS)
    file, source = answered(tmp_path / "p.jsonl"), f"{tmp_path}/m.py:first"
    near1 = ["--filter.near", "1"]
    assert run(tmp_path, file, *near1, "--choose.pairs", "disagreement", "--choose.source", source, code=2) == []
    assert "needs two opinions or more" in caplog.text
    assert run(tmp_path, file, *near1, "--choose.pairs", "margin", code=2) == []
    assert "Give --choose.source" in caplog.text
    silent = ["--choose.pairs", "margin", "--choose.source", f"{tmp_path}/m.py:silent"]
    assert run(tmp_path, file, *near1, *silent, code=2) == []
    assert "no two different answers were scored by all sources (3)" in caplog.text
    rows = run(tmp_path, file, *near1, "--choose.pairs", "random", "--choose.budget", "9")
    assert len(rows) == 3 and "--choose.budget 9: there are only 3 pairs" in caplog.text


# ---- all of it


def test_rows_keep_what_they_had_and_say_what_was_found(tmp_path: Path, caplog):
    responses = (Response((Message("assistant", "yes"),)), Response((Message("assistant", "no"),)))
    given = Example(asks(TEXTS["en"]).prompt, responses, (Pair(0, 1),), meta={"topic": "mine", "id": 7})
    file = write(tmp_path / "p.jsonl", given, asks("WHO?"), asks("who?"))
    rows = run(tmp_path, file, "--summary", str(tmp_path / "s.json"), "--dropped", str(tmp_path / "d.jsonl"))
    meta = rows[0]["meta"]
    assert meta["topic_given"] == "mine" and meta["topic"] != "mine" and meta["id"] == 7
    assert (meta["language"], meta["code"], meta["weight"]) == ("en", False, 1.0) and 0 < meta["complexity"] < 1
    assert "1 rows have a column 'topic' already" in caplog.text
    back = load_examples(str(tmp_path / "out.jsonl")).examples[0]
    assert (back.responses, back.feedback) == (responses, (Pair(0, 1),))
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["rows"] == 2 and told["stages"][1]["dropped"] == {EXACT: 1}
    (dropped,) = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
    assert dropped == {
        "file": file, "row": 3, "stage": "equal prompts", "reason": EXACT, "of": {"file": file, "row": 2},
        "prompt": "who?",
    }  # fmt: skip


def test_a_conversation_is_asked_up_to_its_last_question(tmp_path: Path):
    row = {
        "messages": [
            {"role": r, "content": c}
            for r, c in (("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"))
        ]
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = run(tmp_path, str(tmp_path / "p.jsonl"))
    assert [turn["content"] for turn in found["prompt"]] == ["a?", "b", "c?"]
    assert found["responses"][0]["messages"][0]["content"] == "d"


def test_the_same_seed_gives_the_same_rows_and_another_others(tmp_path: Path):
    rng = random.Random(6)
    file = write(tmp_path / "p.jsonl", *(asks(sentence(rng, 2), row) for row in range(60)))
    out = []
    for number, seed in enumerate((1, 1, 2)):
        assert main(["curate", file, "--out", str(tmp_path / f"{number}"), "--take", "12", "--seed", str(seed)]) == 0
        out.append((tmp_path / f"{number}").read_bytes())
    assert out[0] == out[1] != out[2]


@pytest.mark.parametrize(
    ("words", "error", "reason"),
    [
        ({"filter": {"languages": ["xx"]}}, ConfigError, "--filter.languages xx: the detector does not know it"),
        ({"filter": {"languages": ["German"]}}, ConfigError, "the detector does not know it. Perhaps you meant 'de'."),
        ({"filter": {"languages": ["zh-CN"]}}, ConfigError, "the detector does not know it. Perhaps you meant 'zh'."),
        ({"complexity": {"prompt": "p.yaml"}}, ConfigError, "--complexity.prompt is about a judge"),
        ({"complexity": {"source": "nobody"}}, ConfigError, "--complexity.source: expected openai=URL or judge=FOLDER"),
        (
            {"complexity": {"source": "openai=http://x", "prompt": "pairwise"}},
            ConfigError,
            "expected mode rating or criteria",
        ),
        ({"choose": {"budget": 3}}, ConfigError, "--choose.budget is about pairs"),
        ({"choose": {"pairs": "disagreement", "source": ["x", "x"]}}, ConfigError, "--choose.source: x is there twice"),
        ({"choose": {"pairs": "random", "source": ["x"]}}, ConfigError, "--choose.source is read only with"),
        ({"topics": {"method": "none", "number": 3}}, ConfigError, "--topics.method none makes no topics"),
        ({"topics": {"model": "/nowhere/model"}}, ModelError, "--topics.model /nowhere/model"),
        ({"against": ["/nowhere/eval.jsonl"]}, DataError, "no such file"),
        ({"multi_turn": 0.5}, DataError, "--multi_turn 0.5: 0 prompts with several turns and 1 with one are left"),
        ({"judge": {"model": "m"}}, ConfigError, "--judge.model is read only with"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, words: dict, error: type, reason: str):
    file = write(tmp_path / "p.jsonl", asks("Who?"))
    with pytest.raises(error, match=reason.replace("(", r"\(")):
        curate(CurateConfig((file,), str(tmp_path / "out.jsonl"), **words))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "in.jsonl", "--resume"], "--out in.jsonl is a file that is read, which would be lost"),
        (["--out", "o", "--dropped", "./in.jsonl"], "--dropped ./in.jsonl is a file that is read"),
        (["--out", "o", "--against", "e.jsonl", "--summary", "e.jsonl"], "--summary e.jsonl is a file that is read"),
        (["--out", "o", "--dropped", "o"], "--out and --dropped are the same file, o."),
        (["--out", "o", "--dropped", "d", "--summary", "d"], "--summary and --dropped are the same file, d."),
        (["folder", "--out", "folder/o"], "--out folder/o lies in a folder that is read"),
    ],
)
def test_nothing_that_is_read_or_written_is_written_over(tmp_path: Path, words: list, reason: str, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("in.jsonl", "e.jsonl", "folder/a.jsonl"):
        write(tmp_path / name, asks("Who?"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert main(["curate", "in.jsonl", *words]) == 2
    assert reason in caplog.text and not (tmp_path / "o").exists()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_files_in_which_nothing_is_left(tmp_path: Path, caplog):
    (tmp_path / "empty.jsonl").write_text("")
    assert run(tmp_path, str(tmp_path / "empty.jsonl"), code=2) == [] and "the file is empty" in caplog.text
    same = write(tmp_path / "same.jsonl", *(asks("Who?", row) for row in range(5)))
    assert len(run(tmp_path, same)) == 1
    (tmp_path / "out.jsonl").unlink()
    german = write(tmp_path / "de.jsonl", asks(TEXTS["de"]), asks(TEXTS["fr"]))
    words = ["--filter.languages", "en", "--dropped", str(tmp_path / "d.jsonl"), "--summary", str(tmp_path / "s.json")]
    assert run(tmp_path, german, *words, code=2) == []
    assert "no prompt is left of 2. Mostly: in another language: de (1)" in caplog.text
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 2 and json.loads((tmp_path / "s.json").read_text())
    assert run(tmp_path, same, "--against", same, code=2) == []
    assert "overlaps with" in caplog.text
    rows = [{"prompt": " "}, {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path, str(tmp_path / "odd.jsonl"), code=2) == []


def test_every_row_is_accounted_for(tmp_path: Path):
    rng = random.Random(7)
    rows = [asks(sentence(rng), row) for row in range(40)] + [asks(TEXTS["de"])] * 3
    file = write(tmp_path / "p.jsonl", *rows)
    with open(file, "a") as more:
        more.write("{broken\n")
    names = ["--summary", str(tmp_path / "s.json"), "--dropped", str(tmp_path / "d.jsonl")]
    kept = run(tmp_path, file, *names, "--filter.languages", "en", "--take", "10")
    told = json.loads((tmp_path / "s.json").read_text())
    dropped = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert len(kept) == 10 and len(kept) + len(dropped) == 44 == sum(told["files"].values())
    assert Counter(row["stage"] for row in dropped) == {
        stage["name"]: count for stage in told["stages"] if (count := sum(stage["dropped"].values()))
    }
    for before, after in zip(told["stages"], told["stages"][1:], strict=False):
        assert before["left"] == after["came"] == before["came"] - sum(before["dropped"].values())
    assert len({(row["file"], row["row"]) for row in dropped}) == len(dropped)


@pytest.mark.skipif(not REAL, reason="ASSENT_REAL_DATA is not set")
def test_on_real_prompts(tmp_path: Path):
    files = [f"{REAL}/{name}" for name in ("alpaca_en_demo.json", "dpo_en_demo.json", "xstest_prompts.csv")]
    words = ["--filter.languages", "en", "--take", "200", "--multi_turn", "0.29", "--summary", str(tmp_path / "s.json")]
    kept = run(tmp_path, *files, *words)
    told = json.loads((tmp_path / "s.json").read_text())
    assert len(kept) == 200 and sum(len(row["prompt"]) > 2 for row in kept) == 58
    assert told["stages"][1]["dropped"] == {EXACT: 19} and told["languages"]["en"] > 1650
    assert set(told["stages"][2]["dropped"]) == {f"in another language: {c}" for c in ("hi", "ro", "ca", "de", "it")}
