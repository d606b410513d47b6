"""What is said of annotators: known numbers by hand, and simulated people of whom the careless and the biased are
named."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from assent.lab.annotators import Annotator, judge, rate
from assent.lab.rubric import GoldScore
from assent.people.store.evidence import Evidence, Given, Thing
from assent.people.store.oddities import NONE, Work, reports
from assent.people.store.quality import Live, measure
from assent.people.task import HELPSTEER, Attribute, TaskDefinition, Thresholds

PAIRS = TaskDefinition("t", "pair", thresholds=Thresholds(gold=0.7))


def better(answer: int, strength: int | None = None) -> dict[str, Any]:
    return {"verdict": "better", "better": answer, "strength": strength}


def evidence(task: TaskDefinition, labels: Sequence[Given], things: Mapping[int, Thing] | None = None) -> Evidence:
    made = Evidence(task, dict(things or {one.item: Thing((10, 10), 30, "all") for one in labels}))
    for one in labels:
        made.add(one)
    return made


def given(
    number: int, item: int, user: str, value: Any, *, purpose: str = "work", seconds: float = 20.0, shown=(0, 1)
) -> Given:
    return Given(number, item, user, purpose, value, seconds, 1000.0 + number, tuple(shown))


# ---- by hand


def test_the_others_agreement_with_each_label_and_over_time():
    said = {1: (0, 0, 1), 2: (1, 1, 1), 3: (0, None, None)}
    labels = [
        given(3 * item + place, item, who, better(answer))
        for item, answers in said.items()
        for place, (who, answer) in enumerate(zip("abc", answers, strict=True))
        if answer is not None
    ]
    made = evidence(PAIRS, labels)
    tables = made.tables()
    assert tables.agreed[:6].tolist() == [0.5, 0.5, 0.0, 1.0, 1.0, 1.0] and np.isnan(tables.agreed[6])
    found = measure(made)
    assert found.labels == 7 and found.of == 2 and found.last == 9
    (question,) = found.questions
    assert question.coefficients["observed agreement"].value == pytest.approx((1 / 3 + 1) / 2)
    assert found.annotators["a"].agreement.mean == pytest.approx(0.75)
    assert found.annotators["c"].agreement.mean == pytest.approx(0.5)
    (point,) = found.timeline
    assert (point.start, point.end) == (1003.0, 1008.0) and point.agreement.mean == pytest.approx(4 / 6)


def test_a_label_that_was_superseded_counts_no_more():
    made = evidence(PAIRS, [given(1, 1, "a", better(0)), given(2, 1, "b", better(1))])
    assert measure(made).annotators["a"].agreement.mean == 0
    gone = made.remove(2)
    assert gone is not None and gone.user == "b"
    made.add(given(3, 1, "b", better(0)))
    assert measure(made).annotators["a"].agreement.mean == 1 and made.remove(2) is None


def test_known_answers_second_looks_and_screening():
    things = {n: Thing((5, 5), 20, "", better(n % 2)) for n in range(10)} | {99: Thing((5, 5), 20)}
    labels = [given(n, n, "a", better(n % 2 if n < 6 else 1 - n % 2, 3), purpose="gold") for n in range(10)]
    labels += [given(20 + n, n, "a", better(n % 2), purpose="screening") for n in range(3)]
    labels += [given(30, 99, "a", better(0)), given(31, 99, "a", better(1), purpose="second")]
    report = measure(evidence(PAIRS, labels, things)).annotators["a"]
    low, high = stats.binomtest(6, 10).proportion_ci(method="wilson")
    assert (report.gold.mean, report.gold.low, report.gold.high) == pytest.approx((0.6, low, high))
    assert (report.screening.mean, report.screening.n) == (1.0, 3) and (report.again.mean, report.again.n) == (0.0, 1)
    (finding,) = report.odd
    assert finding.name == "known answers" and "60 % (31 to 83) of 10" in finding.why and "70 %" in finding.why


def test_both_bad_and_cannot_judge_are_no_question_of_their_own():
    values = [{"verdict": "both_bad"}, {"verdict": "tie"}, {"verdict": "cannot_judge"}, better(0)]
    made = evidence(PAIRS, [given(n, 1, f"u{n}", value) for n, value in enumerate(values)])
    found = measure(made)
    assert [question.question for question in found.questions] == ["comparison"]
    assert found.annotators["u0"].agreement.mean == 0.5 and found.annotators["u2"].agreement.n == 0


def test_marks_agree_in_parts():
    task = TaskDefinition("t", "spans", labels=("wrong",))
    span = {"answer": 0, "label": "wrong"}
    labels = [
        given(1, 1, "a", {"spans": [span | {"start": 0, "end": 10}]}),
        given(2, 1, "b", {"spans": [span | {"start": 5, "end": 10}]}),
        given(3, 1, "c", {"spans": []}),
    ]
    assert evidence(task, labels, {1: Thing((10,), 20)}).tables().agreed.tolist() == [0.25, 0.25, 0.0]


def work(**more: Any) -> Work:
    empty = np.empty(0)
    base = {"agreed": empty, "items": np.empty(0, int), "seconds": empty, "reading": empty, "gold": empty,
            "again": empty, "screening": empty}  # fmt: skip
    return Work(**base | more)


def agreeing(values: np.ndarray) -> Work:
    n = len(values)
    return work(agreed=values, items=np.arange(n), seconds=np.full(n, 20.0), reading=np.full(n, 100.0))


def test_somebody_who_drifts_is_named_and_somebody_who_learns_is_not():
    rng = np.random.default_rng(0)
    high, low = (rng.random((6, 200)) < share for share in (0.9, 0.5))
    people = {f"good{n}": agreeing(high[n].astype(float)) for n in range(4)}
    people["tired"] = agreeing(np.concatenate([high[4][:150], low[4][:50]]).astype(float))
    people["learner"] = agreeing(np.concatenate([low[5][:50], high[5][:150]]).astype(float))
    found = reports(PAIRS, people, {})
    assert [finding.name for finding in found["tired"].odd] == ["drifts"]
    drift = found["tired"].drift
    assert drift is not None and drift.late.n == 50 and drift.late.mean == low[4][:50].mean()
    table = [[drift.late.mean * 50, 50 - drift.late.mean * 50], [drift.early.mean * 100, 100 - drift.early.mean * 100]]
    assert drift.p == pytest.approx(stats.fisher_exact(np.round(table), alternative="less").pvalue)
    assert not any(finding.name == "drifts" for name, one in found.items() if name != "tired" for finding in one.odd)


def test_haste_is_measured_against_what_there_was_to_read():
    seconds = np.concatenate([np.full(30, 3.0), np.full(30, 60.0)])
    hasty = work(agreed=np.ones(60), items=np.arange(60), seconds=seconds, reading=np.full(60, 100.0))
    found = reports(PAIRS, {"hasty": hasty, "bot": hasty}, {}, frozenset({"bot"}))
    assert [finding.name for finding in found["hasty"].odd] == ["hurries"] and found["hasty"].hurried.mean == 0.5
    assert found["bot"].odd == () and found["bot"].hurried is NONE
    steady = work(agreed=np.ones(60), items=np.arange(60), seconds=np.r_[np.linspace(8, 12, 59), 4000.0],
                  reading=np.full(60, 100.0))  # fmt: skip
    assert reports(PAIRS, {"steady": steady}, {})["steady"].pauses == 1


# ---- simulated people


GOOD = [Annotator(f"good{n}", temperature=0.4) for n in range(8)]
POOR = [Annotator("careless", temperature=0.4, careless=1.0), Annotator("lefty", temperature=0.4, position_bias=2.5)]
LONG = Annotator("lengthy", temperature=0.4, length_bias=0.3)


def simulated(people: Sequence[Annotator], items: int, overlap: int, seed: int) -> Evidence:
    """Pairs of answers whose length says nothing of their worth."""
    rng = np.random.default_rng(seed)
    made = Evidence(PAIRS)
    number = 0
    for item in range(items):
        golds = [GoldScore(*rng.integers(0, 5, 3), 2, 2) for _ in range(2)]
        texts = ["word " * int(rng.integers(5, 30)) for _ in range(2)]
        made.things[item] = Thing(tuple(len(text.split()) for text in texts), 60, f"topic {item % 3}")
        for who in rng.permutation(len(people))[:overlap]:
            shown = (0, 1) if rng.random() < 0.5 else (1, 0)
            first, strength = judge(people[who], [texts[i] for i in shown], [golds[i] for i in shown], rng)
            number += 1
            seconds = float(np.exp(rng.normal(3, 0.4)))
            made.add(given(number, item, people[who].name, better(shown[0 if first else 1], strength), seconds=seconds,
                           shown=shown))  # fmt: skip
    return made


def names(found: Live) -> dict[str, list[str]]:
    return {name: [finding.name for finding in one.odd] for name, one in found.annotators.items() if one.odd}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_careless_and_the_biased_are_named_and_the_good_are_not(seed):
    found = measure(simulated([*GOOD, *POOR, LONG], 700, 3, seed))
    odd = names(found)
    assert set(odd) == {"careless", "lefty", "lengthy"}
    assert "disagrees" in odd["careless"] and not any("prefers" in name for name in odd["careless"])
    assert "prefers the left" in odd["lefty"] and "prefers the longer" in odd["lengthy"]
    assert found.annotators["careless"].agreement.high < found.annotators["good0"].agreement.low


def test_of_fifty_alike_nobody_is_named():
    people = [Annotator(f"good{n}", temperature=0.6, careless=0.05) for n in range(50)]
    assert names(measure(simulated(people, 1500, 3, 5))) == {}


def test_ratings_of_a_careless_annotator():
    task = TaskDefinition("t", "attributes", attributes=dict(HELPSTEER) | {"helpfulness": Attribute()})
    rng = np.random.default_rng(0)
    people = [Annotator(f"good{n}", temperature=0.4) for n in range(4)] + [Annotator("careless", careless=1.0)]
    made, number = Evidence(task), 0
    for item in range(120):
        gold = GoldScore(*rng.integers(0, 5, 5))
        made.things[item] = Thing((10,), 30)
        for who in rng.permutation(5)[:3]:
            number += 1
            made.add(given(number, item, people[who].name, {"scores": [rate(people[who], "w", gold, rng)]}, shown=(0,)))
    found = measure(made)
    assert set(names(found)) == {"careless"} and len(found.questions) == 5
    assert all("Krippendorff's α (ordinal)" in question.coefficients for question in found.questions)


def test_topics_are_few_and_agreement_is_of_the_latest(monkeypatch):
    made = simulated(GOOD, 300, 3, 0)
    for item in made.things:
        made.things[item] = Thing((5, 5), 20, f"topic {item % 20}")
    monkeypatch.setattr("assent.people.store.quality.LATEST", 200)
    found = measure(made)
    assert (found.items, found.of) == (200, 300)
    (question,) = found.questions
    assert question.twice == 200 and len(question.topics) == 13 and "all others" in question.topics


def test_a_hundred_thousand_labels_take_seconds_in_the_background():
    people = [Annotator(f"good{n}", temperature=0.5) for n in range(50)]
    made = simulated(people, 33_334, 3, 0)
    start = time.process_time()
    measure(made)
    print(time.process_time() - start)
    assert time.process_time() - start < 60
