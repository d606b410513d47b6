"""Examples and rewards as what is measured, and edited answers asked for anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from assent.data.conversions import comparisons, overall_ratings
from assent.data.records import Example, Message, Pair, Ranking, Rating, Response, RowError
from assent.measures.edits import EDITS
from assent.measures.estimates import Estimate, undefined
from assent.measures.trust import as_json, measure
from assent.measures.verdicts import findings, plain, share, summary
from assent.rewards.group import Scores
from assent.rewards.judged import failures, judged, sensitivities
from assent.statistics import Interval

NAN = math.nan


def example(*texts: str, prompt: str = "Why?", feedback=(), meta=None) -> Example:
    responses = tuple(Response((Message("assistant", text),)) for text in texts)
    return Example((Message("user", prompt),), responses, tuple(feedback), meta=meta or {})


def by_length(examples: Sequence[Example]) -> Scores:
    """A reward that is the answer's length; an empty answer is unscored."""
    sizes = [len(response.text) for each in examples for response in each.responses]
    values = np.array([NAN if size == 0 else float(size) for size in sizes])
    return Scores(values, failures={"empty": sizes.count(0)} if 0 in sizes else {})


def test_comparisons_by_the_responses_own_indices():
    ranked = example("a", "b", "c", feedback=[Ranking(((1,), (0, 2)))])
    pairs, ties = comparisons(ranked)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(1, 0), (1, 2)] and ties == [(0, 2)]
    rated = example("a", "b", "c", feedback=[Rating(0, {"x": 1.0}), Rating(1, {"x": 3.0}), Rating(2, {"x": 1.0})])
    pairs, ties = comparisons(rated)
    assert [(pair.chosen, pair.rejected, pair.strength) for pair in pairs] == [(1, 0, 2.0), (1, 2, 2.0)]
    assert ties == [(0, 2)] and overall_ratings(rated) == {0: 1.0, 1: 3.0, 2: 1.0}
    assert comparisons(example("a", feedback=[Rating(0, {"x": 1.0})])) == ([], [])
    assert comparisons(example("a", "b")) == ([], [])
    with pytest.raises(RowError, match="different attributes"):
        overall_ratings(example("a", "b", feedback=[Rating(0, {"x": 1.0}), Rating(1, {"y": 1.0})]))


def test_examples_become_columns():
    examples = [
        example("aa", "b", feedback=[Pair(0, 1, 2.0, "ann")], meta={"source": "web"}),
        example("ccc", "", prompt="How?", feedback=[Pair(1, 0)], meta={"source": "book", "annotator": "bob"}),
        example("dd", "e", feedback=[Ranking(((0, 1),))]),
    ]
    found, unused = judged(examples, by_length(examples))
    assert unused == {}
    assert found.prompt.tolist() == [0, 0, 1, 1, 0, 0]  # the same prompt twice
    assert found.pairs.tolist() == [[0, 1], [3, 2]] and found.ties.tolist() == [[4, 5]]
    assert found.strength[0] == 2.0 and math.isnan(found.strength[1])
    assert found.groups == {"source": ("web", "book"), "annotator": ("ann", "bob")}
    assert math.isnan(found.rewards[3]) and found.gold is None and found.members is None


def test_ratings_are_gold_where_nothing_else_is_given():
    rated = [example("a", "b", feedback=[Rating(0, {"x": 1.0}), Rating(1, {"x": 3.0})])]
    found, _ = judged(rated, by_length(rated))
    assert found.gold.tolist() == [1.0, 3.0]
    found, _ = judged(rated, by_length(rated), gold=np.array([7.0, NAN]))
    assert found.gold[0] == 7.0
    torn = [example("a", "b", feedback=[Rating(0, {"x": 1.0}), Rating(1, {"y": 3.0})])]
    found, unused = judged(torn, by_length(torn))
    assert len(found.pairs) == 0 and unused == {"answers are rated in different attributes": 1}


def test_the_members_of_an_ensemble():
    one = [example("a", "b", feedback=[Pair(0, 1)])]
    parts = {"m/a": np.array([1.0, 0.0]), "m/b": np.array([0.0, 2.0]), "other": np.zeros(2)}
    found, _ = judged(one, Scores(np.array([0.5, 1.0]), parts), members=("m/a", "m/b"))
    assert found.members.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_edited_answers_are_scored_anew():
    texts = [("One two three. Four five six.", "No."), ("- a\n- b", "x y z. w."), ("", "Hm.")]
    examples = [example(*two, prompt=str(n), feedback=[Pair(0, 1)]) for n, two in enumerate(texts)]
    asked: list[int] = []

    def score(edited: Sequence[Example]) -> Scores:
        assert all(each.responses and not each.feedback for each in edited)
        asked.append(sum(len(each.responses) for each in edited))
        return by_length(edited)

    found = {each.name: each for each in sensitivities(examples, by_length(examples), score, rows=99)}
    assert set(found) == {edit.name for edit in EDITS}
    scale = np.nanstd([29, 3, 7, 9, 3])
    assert found["newlines"].change.value == pytest.approx(2 / scale) and found["newlines"].answers == 5
    assert found["newlines"].rose.value == 1.0
    assert found["list order"].answers == 1 and found["list order"].change.value == 0
    assert found["50 %"].change.value < 0 and found["50 %"].rose.value == 0
    assert asked[0] == 5  # the empty answer is not edited
    few = sensitivities(examples, by_length(examples), by_length, rows=1)
    assert all(each.answers <= 2 for each in few)
    assert sensitivities(examples, by_length(examples), by_length, rows=0) == ()


def test_a_reward_of_length_is_seen_through():
    rng = np.random.default_rng(0)
    examples = []
    for number in range(120):
        sizes = rng.permutation([10, 60]) if number % 3 else [60, 10]
        better, worse = ("w " * int(size) for size in sizes)
        examples.append(example(better + "end.", worse + "end.", prompt=str(number), feedback=[Pair(0, 1)]))
    scores = by_length(examples)
    found, _ = judged(examples, scores)
    trust = measure(found, sensitivity=sensitivities(examples, scores, by_length, rows=20), resamples=100)
    assert trust.parts["better answer"]["shorter"].right.mean == 0
    assert trust.parts["better answer"]["longer"].right.mean == 1
    worries = [finding.text for finding in findings(trust) if finding.tone == "bad"]
    assert any("shorter one it is right on 0 %" in text for text in worries)
    assert any("Long answers are over-rated" in text for text in worries)
    assert any("Worse answers" in text and "last sentence" in text for text in worries)
    assert any("100 %" in line and "longer answer" in line for line in summary(trust))


def test_what_cannot_be_measured_is_said_and_json_has_no_nan():
    import json

    for examples, says in (
        ([example("a", "b")], "no pair is labelled"),
        ([example("aa", "bb", feedback=[Pair(0, 1)])], "all 2 rewards are equal"),
        ([example("", "", feedback=[Pair(0, 1)])], "no pair has two scored answers"),
    ):
        scores = by_length(examples)
        found, _ = judged(examples, scores)
        trust = measure(
            found, failures=failures(scores), sensitivity=sensitivities(examples, scores, by_length, rows=9)
        )
        assert any(says in note for note in trust.notes), trust.notes
        assert json.dumps(as_json(trust), allow_nan=False)
        findings(trust), summary(trust)


def test_ties_everywhere_and_one_row():
    examples = [example("aa", "b", prompt=str(n), feedback=[Ranking(((0, 1),))]) for n in range(4)]
    found, _ = judged(examples, by_length(examples))
    trust = measure(found)
    assert trust.counts.label_ties == 4 and trust.accuracy is None and "both kinds" in trust.tied.problem
    one = [example("aa", "b", feedback=[Pair(0, 1)])]
    found, _ = judged(one, by_length(one))
    trust = measure(found)
    assert trust.accuracy.right.n == 1 and math.isnan(trust.accuracy.by_prompt.low)
    assert "no pair is wrong" in trust.calibration.temperature.problem


def test_people_s_ties_are_told_from_what_they_decided():
    decided = [example("a" * 30, "b", prompt=str(n), feedback=[Pair(0, 1)]) for n in range(20)]
    tied = [example("aa", "b", prompt=f"t{n}", feedback=[Ranking(((0, 1),))]) for n in range(20)]
    found, _ = judged([*decided, *tied], by_length([*decided, *tied]))
    assert measure(found, resamples=20).tied.value == 1.0


def test_different_numbers_of_answers_are_said_beside_the_curve():
    rated = [
        example(
            *["x" * (1 + i) for i in range(k)], prompt=str(k), feedback=[Rating(i, {"x": float(i)}) for i in range(k)]
        )
        for k in (2, 3, 5)
    ]
    found, _ = judged(rated, by_length(rated))
    trust = measure(found, gold="overall rating", resamples=20)
    assert [point.prompts for point in trust.best_of] == [3, 3]  # a single prompt has more than three
    assert any("2 to 5 answers" in note for note in trust.notes)


def test_reasons_that_no_source_gives_are_counted_too():
    assert failures(Scores(np.array([NAN, 1.0, NAN]), failures={"long": 1})) == {"long": 1, "no reason given": 1}


def test_numbers_in_words():
    assert plain(Estimate(0.314, 0.2, 0.4, 9)) == "0.31 (0.20 to 0.40)"
    assert plain(Estimate(-0.5, -0.6, -0.4), 1, "+") == "-0.5 (-0.6 to -0.4)"
    assert plain(Estimate(0.07, 0.04)) == "0.07 (0.04 at least)" and plain(Estimate(2.0)) == "2.00"
    assert plain(undefined("why")) == share(undefined("why")) == "–"
    assert share(Interval(0.714, 0.66, 0.75, 9)) == "71 % (66 to 75)" and share(Interval(NAN, NAN, NAN, 0)) == "–"
