"""AlpacaEval 2's length-controlled win rate: its GLM written out with scikit-learn, and that package itself where it is
installed, on annotations made here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from assent.errors import DataError
from assent.measures import length_controlled as lc
from assent.measures import logistic
from assent.measures.answers import Answers, Prompts
from assent.measures.gamed import Gamed, Instructions
from assent.measures.gamed import gamed_rows as read_gamed
from assent.measures.shapes import Duels
from assent.measures.table import required

INSTRUCTIONS = 150


def gamed_rows(seed: int = 0) -> Gamed:
    """The baseline against a concise and a verbose variant of its own answers."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=INSTRUCTIONS)
    index = np.concatenate([np.arange(INSTRUCTIONS)] * 2)
    length = np.concatenate([rng.normal(1.2, 0.4, INSTRUCTIONS), rng.normal(-1.2, 0.4, INSTRUCTIONS)])
    logit = -2.0 * np.tanh(length) + 0.4 * difficulty[index] + rng.normal(0, 0.5, len(index))
    return Gamed(expit(logit), length, difficulty[index], index)


def annotations(gamed: Gamed, skill: float, longer: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, 1])
    index = np.arange(INSTRUCTIONS)
    theirs = rng.integers(500, 2500, INSTRUCTIONS).astype(float)
    ours = np.maximum(20, theirs + longer + rng.normal(0, 400, INSTRUCTIONS)).round()
    logit = skill - 2.0 * np.tanh((theirs - ours) / 500) + 0.8 * gamed.difficulties(index)
    outcome = np.clip(expit(logit + rng.normal(0, 1.5, INSTRUCTIONS)).round(3), 0.001, 0.999)
    return outcome, ours, theirs, index


def reference(outcome: np.ndarray, ours: np.ndarray, theirs: np.ndarray, index: np.ndarray, gamed: Gamed) -> float:
    """The GLM with scikit-learn: each row twice, as a win and as a loss, weighted by its chance."""
    delta = theirs - ours
    own = np.column_stack([np.tanh(delta / delta.std(ddof=1)), gamed.difficulties(index), np.ones(len(index))])
    other = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.index))])
    x, y = np.concatenate([other, own]), np.concatenate([gamed.preference, outcome])
    weight = np.r_[np.full(len(other), 0.1), np.ones(len(own))]
    twice, target = np.concatenate([x, x]), np.r_[np.ones(len(y)), np.zeros(len(y))]
    share, group = np.r_[y, 1 - y], np.r_[np.arange(len(y)), np.arange(len(y))]
    both, truth = np.r_[weight, weight], np.r_[y, y]

    def fitted(rows: np.ndarray, c: float) -> LogisticRegression:
        model = LogisticRegression(
            l1_ratio=1, solver="liblinear", C=c, fit_intercept=False, random_state=123, tol=1e-8, max_iter=10_000
        )
        return model.fit(twice[rows], target[rows], sample_weight=(share * both)[rows])

    cs, scores = np.logspace(-4, 4, 10), []
    for c in cs:
        losses = []
        for train, test in GroupKFold(5).split(twice, target, group):
            chance = fitted(train, c).predict_proba(twice[test])[:, 1].clip(1e-15, 1 - 1e-15)
            entropy = truth[test] * np.log(chance) + (1 - truth[test]) * np.log(1 - chance)
            losses.append(np.mean(-both[test] * entropy))
        scores.append(np.mean(losses))
    model = fitted(np.arange(len(target)), cs[int(np.argmin(scores))])
    same_length = own.copy()
    same_length[:, 0] = 0
    return 100 * float(model.predict_proba(same_length)[:, 1].mean())


@pytest.mark.parametrize(("skill", "longer"), [(-1.0, 800), (0.5, -300), (3.0, 0)])
def test_it_is_alpacaevals_glm(skill: float, longer: float):
    gamed = gamed_rows()
    rows = annotations(gamed, skill, longer)
    ours = lc.length_controlled(*rows, gamed, resamples=0)
    assert 100 * ours.rate.value == pytest.approx(reference(*rows, gamed), abs=0.02)


def test_it_is_the_alpaca_eval_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where that package is installed (it is in no extra: it brings much else)."""
    glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate")
    import pandas

    gamed = gamed_rows(3)
    file = tmp_path / "df_gamed.csv"
    pandas.DataFrame(
        {
            "preference": gamed.preference,
            "index": gamed.index,
            "std_delta_len": gamed.length,
            "instruction_difficulty": gamed.difficulty,
            "not_gamed_baseline": False,
            "model": "gamed",
        }
    ).to_csv(file)
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(file))
    for skill, longer in [(-1.0, 800), (0.5, -300), (0.0, 0), (2.5, 300)]:
        outcome, ours, theirs, index = annotations(gamed, skill, longer, seed=5)
        table = pandas.DataFrame(
            {
                "preference": outcome + 1,
                "index": index,
                "output_1": ["x" * int(size) for size in theirs],
                "output_2": ["x" * int(size) for size in ours],
                "generator_1": "baseline",
                "generator_2": "model",
                "annotator": "judge",
            }
        )
        theirs_rate = glm.get_length_controlled_winrate(table, save_weights_dir=None)["length_controlled_winrate"]
        found = lc.length_controlled(outcome, ours, theirs, index, gamed, resamples=0)
        assert 100 * found.rate.value == pytest.approx(theirs_rate, abs=1e-6)


def test_a_judge_that_loves_length_is_exposed():
    """Long answers that are worth nothing more: the raw rate is taken in, the controlled ones are not."""
    gamed = gamed_rows()
    outcome, ours, theirs, index = annotations(gamed, skill=0.0, longer=700)
    assert outcome.mean() > 0.7
    controlled = lc.length_controlled(outcome, ours, theirs, index, gamed, resamples=50).rate
    adjusted = lc.length_adjusted(outcome, ours, theirs, index, resamples=200)
    for rate in (controlled, adjusted):
        assert rate.value < 0.62 and rate.low < rate.value < rate.high < outcome.mean()


def test_failures_are_left_out():
    gamed = gamed_rows()
    outcome, ours, theirs, index = annotations(gamed, 0.5, 100)
    outcome[:30] = math.nan
    kept = outcome[30:], ours[30:], theirs[30:], index[30:]
    with_failures = lc.length_controlled(outcome, ours, theirs, index, gamed, resamples=0)
    assert with_failures.rate.value == lc.length_controlled(*kept, gamed, resamples=0).rate.value
    assert with_failures.rate.n == 120
    a, b = (lc.length_adjusted(*rows, resamples=0).value for rows in ((outcome, ours, theirs, index), kept))
    assert a == b
    assert lc.length_adjusted(outcome[:35], ours[:35], theirs[:35], index[:35]).problem == "fewer than 10 comparisons"


def test_equal_lengths_leave_the_win_rate_and_a_constant_difference_nothing():
    outcome, theirs, prompt = np.r_[np.ones(30), np.zeros(10)], np.full(40, 100.0), np.arange(40)
    found = lc.length_adjusted(outcome, theirs, theirs, prompt)
    assert found.value == pytest.approx(0.75, abs=1e-3)
    assert "same length" in lc.length_adjusted(outcome, theirs + 50, theirs, prompt).problem
    all_won = lc.length_adjusted(np.ones(40), theirs + np.arange(-20.0, 20.0), theirs, prompt)
    assert 0.999 < all_won.value <= 1 and all_won.problem == ""


def test_the_interval_of_the_length_adjusted_rate_covers():
    truth, hits = expit(0.4), 0
    for sim in range(120):
        rng = np.random.default_rng([9, sim])
        delta = rng.normal(-0.8, 1.0, 200)
        won = rng.random(200) < expit(0.4 - 1.0 * np.tanh(delta / delta.std(ddof=1)))
        found = lc.length_adjusted(won.astype(float), -delta, np.zeros(200), np.arange(200), resamples=100, seed=sim)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 120 <= 0.98


def test_preferences_of_alpacaeval_are_read():
    assert lc.preferences([1, 2, 0, 1.5, 1.25]).tolist() == [0, 1, 0.5, 0.5, 0.25]
    assert math.isnan(lc.preferences([None])[0])
    with pytest.raises(DataError, match="row 2: a preference is 0"):
        lc.preferences([1, 3])
    with pytest.raises(DataError, match="Got instruction 999"):
        gamed_rows().difficulties(np.array([3, 999]))


def test_the_row_measures_lengths_in_characters():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 200, 60)
    prompts = Prompts(("",) * 60, ("",) * 60, ((),) * 60, ("",) * 60)
    ours = Answers("ours", prompts, np.arange(60), tuple("x" * size for size in sizes))
    theirs = Answers("theirs", prompts, np.arange(60), ("x" * 100,) * 60)
    outcome = (rng.random(60) < expit((sizes - 100) / 40)).astype(float)
    duels = Duels("judge", ours, theirs, np.repeat(np.arange(60)[:, None], 2, 1), outcome, ("",) * 60)
    expected = lc.length_adjusted(outcome, sizes.astype(float), np.full(60, 100.0), np.arange(60))
    assert lc.ROWS[0].of(duels) == expected


def test_the_users_file_makes_the_measure_of_alpacaevals_name():
    gamed = gamed_rows()
    outcome, ours, theirs, index = annotations(gamed, 0.5, 300)
    rows = [
        {"preference": str(p), "std_delta_len": str(d), "instruction_difficulty": str(h), "index": str(i), "model": "x"}
        for p, d, h, i in zip(gamed.preference, gamed.length, gamed.difficulty, gamed.index, strict=True)
    ]
    read = read_gamed([*rows, rows[0] | {"preference": ""}])
    assert np.array_equal(read.index[:-1], gamed.index) and math.isnan(read.preference[-1])
    blank = ("",) * INSTRUCTIONS
    turned = np.arange(INSTRUCTIONS)[::-1]  # the prompts stand in another order than AlpacaEval's instructions
    prompts = Prompts(blank, blank, ((),) * INSTRUCTIONS, blank, Instructions(read, turned))
    answers = [
        Answers(name, prompts, np.arange(INSTRUCTIONS), tuple("x" * int(size) for size in sizes))
        for name, sizes in (("ours", ours), ("theirs", theirs))
    ]
    pairs = np.repeat(np.arange(INSTRUCTIONS)[:, None], 2, 1)
    row = required("length-controlled-win-rate", "--measures")
    found = row.of(Duels("judge", *answers, pairs, outcome, blank))
    assert found.value == lc.length_controlled(outcome, ours, theirs, turned, gamed, resamples=0).rate.value
    with pytest.raises(DataError, match="needs a column 'std_delta_len'. Row 1 has: preference, index"):
        read_gamed([{"preference": 1, "index": 0}])
    with pytest.raises(DataError, match="row 1, column 'preference': expected a number. Got 'A'"):
        read_gamed([rows[0] | {"preference": "A"}])
    with pytest.raises(DataError, match="row 1, column 'preference': from 0 to 1. Got 2"):
        read_gamed([rows[0] | {"preference": "2"}])
    with pytest.raises(DataError, match="no rows"):
        read_gamed([])


def test_the_solver_is_scikit_learns():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 4)) * [1, 3, 0.2, 1]
    y = (rng.random(120) < expit(x @ [1, -0.5, 0, 0.2])).astype(float)
    weight = rng.random(120) + 0.1
    for c in (0.01, 1.0, 300.0):
        options = {"C": c, "fit_intercept": False, "tol": 1e-10, "max_iter": 100_000}
        ridge = LogisticRegression(**options).fit(x, y, sample_weight=weight)
        assert logistic.fit(x, y, weight, l2=1 / c) == pytest.approx(ridge.coef_[0], abs=2e-5)
        lasso = LogisticRegression(l1_ratio=1, solver="liblinear", **options).fit(x, y, sample_weight=weight)
        assert logistic.fit(x, y, weight, l1=1 / c) == pytest.approx(lasso.coef_[0], abs=2e-5)
    assert logistic.fit(x, y, weight, l1=1e4).tolist() == [0, 0, 0, 0]
