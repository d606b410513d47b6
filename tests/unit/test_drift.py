"""The drift alarm: its rate of false alarms on healthy runs, how soon it sees a drift, and what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from assent.errors import UserError
from assent.measures import drift
from assent.measures.drift import Watch, alarms

HORIZON = 60


def healthy(seed: int) -> dict[str, np.ndarray]:
    """A run that learns: reward and KL rise, entropy falls by a third, answers get half as long again."""
    rng = np.random.default_rng([1, seed])
    t = np.linspace(0, 1, HORIZON)
    return {
        "length": 100 * (1 + 0.5 * t) + rng.normal(0, 5, HORIZON),
        "repetition": 0.05 + rng.normal(0, 0.01, HORIZON),
        "refusal": 0.1 + rng.normal(0, 0.03, HORIZON),
        "entropy": 2.0 * (1 - t / 3) + rng.normal(0, 0.1, HORIZON),
        "distinct": 0.5 + rng.normal(0, 0.02, HORIZON),
        "kl": 8 * t + rng.normal(0, 0.5, HORIZON),
        "held_out": 1 - np.exp(-4 * t) + rng.normal(0, 0.05, HORIZON),
    }


def still(seed: int) -> dict[str, np.ndarray]:
    """A run in which nothing but noise happens: the hardest healthy case, since no slack is left for the reward."""
    rng = np.random.default_rng([2, seed])
    return {"held_out": rng.normal(0, 1, HORIZON), "length": rng.normal(100, 5, HORIZON)}


def hacked(seed: int, turn: int = 30) -> dict[str, np.ndarray]:
    """From `turn` on the held-out reward falls, and repetition and KL grow."""
    rng = np.random.default_rng([3, seed])
    series = healthy(seed)
    after = np.maximum(0, np.arange(HORIZON) - turn) / (HORIZON - turn)
    series["held_out"] = series["held_out"] - 1.5 * after
    series["repetition"] = series["repetition"] + 0.6 * after
    series["kl"] = series["kl"] + 60 * after + rng.normal(0, 0.5, HORIZON)
    return series


def test_healthy_runs_raise_no_more_alarms_than_stated():
    learning = sum(bool(alarms(healthy(seed), horizon=HORIZON)) for seed in range(300)) / 300
    assert learning <= 0.05
    # The rate is all used where nothing changes: it is neither missed nor bought with deafness.
    watches = (Watch("held_out", "down", 0.0, best=True), Watch("length", "up", 0.0))
    for rate in (0.05, 0.2):
        runs = [alarms(still(seed), horizon=HORIZON, watches=watches, rate=rate) for seed in range(400)]
        raised = sum(map(bool, runs)) / 400
        assert 0.4 * rate <= raised <= rate + 2 * math.sqrt(rate / 400)


def test_a_hacked_run_is_seen_a_third_of_the_way_down():
    found = [alarms(hacked(seed), horizon=HORIZON) for seed in range(100)]
    first = np.array([run[0].point if run else HORIZON for run in found])
    assert np.mean(first < 30) <= 0.05  # before anything happened
    assert np.median(first) <= 41 and np.mean(first <= 42) >= 0.9  # a third of the way down
    seen = {alarm.watch.series for run in found for alarm in run}
    assert {"held_out", "repetition", "kl"} <= seen


def test_turning_a_series_round_turns_the_side_round():
    series = {"length": np.r_[np.random.default_rng(0).normal(100, 2, 30), np.full(30, 150.0)]}
    up, down = Watch("length", "up", 0.1, relative=True), Watch("length", "down", 0.1, relative=True)
    found = alarms(series, horizon=60, watches=(up, down))
    assert [alarm.watch for alarm in found] == [up] and 30 <= found[0].point <= 34
    turned = {"length": 200 - series["length"]}
    assert [alarm.watch for alarm in alarms(turned, horizon=60, watches=(up, down))] == [down]


def test_one_outlier_is_no_alarm_and_missing_points_are_passed_over():
    rng = np.random.default_rng(1)
    points = rng.normal(100, 2, 60)
    points[40] = 10_000
    assert alarms({"length": points}, horizon=60) == ()
    points[30:] = 300
    points[35] = math.nan
    gone = alarms({"length": points}, horizon=60)
    assert 30 <= gone[0].point <= 36
    assert str(gone[0]).startswith("length has risen above ")
    assert "(100 % from its start): 300 at point" in str(gone[0])


def test_what_follows_changes_no_alarm():
    series = hacked(5)
    whole = alarms(series, horizon=HORIZON)
    known: list[drift.Alarm] = []
    for n in range(HORIZON + 1):
        for alarm in alarms({name: points[:n] for name, points in series.items()}, horizon=HORIZON):
            if alarm not in known:
                known.append(alarm)
                assert alarm.point == n - 1  # as soon as it can be
    assert sorted(known, key=lambda alarm: alarm.point) == sorted(whole, key=lambda alarm: alarm.point)


def test_a_start_without_noise_waits_for_what_matters():
    still = np.zeros(60)
    still[25:] = 0.01
    assert alarms({"repetition": still}, horizon=60) == ()
    still[30:] = 0.5
    assert 30 <= alarms({"repetition": still}, horizon=60)[0].point <= 40
    assert alarms({"repetition": still[:10]}, horizon=60) == () and alarms({}, horizon=60) == ()


def test_bad_input_is_named():
    with pytest.raises(UserError, match="Got 3 of 60"):
        alarms({}, horizon=60, start=3)
    with pytest.raises(UserError, match="Got 10 of 10"):
        alarms({}, horizon=10)
    with pytest.raises(UserError, match="length has 61 points"):
        alarms({"length": np.zeros(61)}, horizon=60)
