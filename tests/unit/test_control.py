"""The example of the PPO paper's Table 1: stacked runs are the runs alone, and the arithmetic behind its table.

No test here needs gymnasium or MuJoCo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from control import table, table1  # noqa: E402
from control.networks import StackedMLP, gaussian_kl, gaussian_logprob  # noqa: E402
from control.rollout import Experience, Normaliser, Segment  # noqa: E402
from control.training import SETTINGS, Hyperparameters, Training, credit, policy_loss  # noqa: E402

from assent.errors import NonFiniteError, UserError  # noqa: E402
from assent.losses import adaptive_penalty, cpi, ppo_clip  # noqa: E402

SMALL = Hyperparameters(horizon=48, epochs=3, minibatch=16, learning_rate=3e-3)


class Follow:
    """A point drifts; the action should equal the first two numbers of the state. Over when the point leaves a box,
    cut after 13 steps."""

    observation_space, action_space = SimpleNamespace(shape=(3,)), SimpleNamespace(shape=(2,))

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.state, self.time = self.rng.normal(size=3), 0
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = -float(np.sum((action - self.state[:2]) ** 2))
        self.state = 0.9 * self.state + 0.5 * self.rng.normal(size=3)
        self.time += 1
        return self.state.copy(), reward, bool(np.abs(self.state).max() > 2.2), self.time >= 13, {}


def trained(settings, seeds, segments=3) -> Training:
    training = Training(Follow, settings, seeds, SMALL)
    for _ in range(segments):
        training.segment()
    return training


@pytest.fixture
def double():
    """What differs by rounding alone stays far below what differs by a mistake."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_run_in_the_stack_is_the_run_alone(double) -> None:
    together = trained(SETTINGS, (4, 7))
    for row, (setting, seed) in enumerate(together.runs):
        if seed != 7 and setting.name != "clipping, 0.2":
            continue
        alone = trained([setting], [seed])
        for stacked, single in zip(together.networks.parameters(), alone.networks.parameters()):
            torch.testing.assert_close(stacked[row], single[0], rtol=1e-7, atol=1e-9)
        ends, rewards = zip(*together.experience.episodes[row])
        ends_alone, rewards_alone = zip(*alone.experience.episodes[0])
        assert ends == ends_alone and rewards == pytest.approx(rewards_alone, rel=1e-7)
        assert together.beta[row] == alone.beta[0] and together.kl[row] == pytest.approx(alone.kl[0], rel=1e-6)


def test_settings_and_seeds_make_different_runs() -> None:
    fixed = [setting for setting in SETTINGS if setting.target is None]  # adaptive ones may move alike for a while
    rows = trained(fixed, (4, 7)).networks.log_std.flatten(1)
    assert torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 1e-6
    start = trained(fixed, (4, 7), segments=0).networks.critic.weights[1]
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])


@pytest.mark.parametrize("name", ["clipping, 0.2", "adaptive KL, 0.01", "fixed KL, 1"])
def test_it_learns(name: str) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    training = Training(Follow, [setting], [0], Hyperparameters(horizon=256, learning_rate=2e-3))
    for _ in range(20):
        training.segment()
    with torch.no_grad():
        last = training.experience.collect(2000, training.networks.mean, torch.full((1, 1, 2), -20.0))
        assert last.rewards.mean() > -0.9  # the best action that does not look at the state, 0, has about -1.73
        met = training.experience.collect(2000, training.networks.mean, training.networks.log_std)
        values, after = training.networks.values(met.observations), training.networks.values(met.following)
    returns = credit(met, torch.zeros_like(values), after, 0.99, 1.0)
    assert returns.mean() < -15 and 0.7 < values.mean() / returns.mean() < 1.4


def test_penalties_follow_the_measured_kl() -> None:
    training = trained(SETTINGS, [0], segments=4)
    for row, (setting, _) in enumerate(training.runs):
        beta = setting.beta
        for kl in training.kl[row] if setting.target else []:
            beta = adaptive_penalty(beta, kl, target=setting.target)
        assert training.beta[row] == beta and len(training.kl[row]) == 4
    assert training.experience.normaliser.count == pytest.approx(4 * SMALL.horizon, abs=0.1)  # each segment, once
    moved = {setting.name: np.mean(kl) for (setting, _), kl in zip(training.runs, training.kl)}
    assert moved["fixed KL, 10"] < moved["fixed KL, 1"] < moved["no clipping or penalty"]
    assert moved["clipping, 0.1"] < moved["clipping, 0.3"] < moved["no clipping or penalty"]


def test_a_run_that_breaks_is_named() -> None:
    class Broken(Follow):
        def step(self, action):
            observation, _, over, limit, info = super().step(action)
            return observation, float("nan"), over, limit, info

    training = Training(Broken, SETTINGS[1:2], [3], SMALL)
    with pytest.raises(NonFiniteError, match=r"clipping, 0\.1, seed 3: .* not finite after 48 steps"):
        training.segment()


def test_gaussians() -> None:
    torch.manual_seed(0)
    mean, old_mean, actions = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    log_std, old_log_std = torch.randn(2, 2, 1, 4, dtype=torch.float64)
    new, old = (Independent(Normal(m, s.exp()), 1) for m, s in ((mean, log_std), (old_mean, old_log_std)))
    torch.testing.assert_close(gaussian_logprob(actions, mean, log_std), new.log_prob(actions))
    torch.testing.assert_close(gaussian_kl(old_mean, old_log_std, mean, log_std), kl_divergence(old, new))


def test_each_network_of_a_stack() -> None:
    stack = StackedMLP((3, 5, 4, 2), [torch.Generator().manual_seed(seed) for seed in (1, 2)], last=0.01)
    for weight, norm in zip(stack.weights, (1.0, 1.0, 0.01)):
        assert weight.norm(dim=1).flatten().tolist() == pytest.approx([norm] * 2 * weight.shape[2])
    assert not torch.cat([bias.flatten() for bias in stack.biases]).any()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 6, 3)
    for run in range(2):
        first, second, third = (weight[run] for weight in stack.weights)
        one, two, three = (bias[run, 0] for bias in stack.biases)
        expected = torch.tanh(torch.tanh(x[run] @ first + one) @ second + two) @ third + three
        torch.testing.assert_close(stack(x)[run], expected)


def test_credit_of_episodes_over_and_cut() -> None:
    torch.manual_seed(0)
    rewards, values, bootstrap = torch.randn(3, 2, 6, dtype=torch.float64)
    ends, cut = torch.zeros(2, 2, 6, dtype=torch.bool)
    ends[:, -1] = ends[0, 2] = ends[1, 1] = cut[:, -1] = cut[1, 1] = (
        True  # run 0 is over after step 2, run 1 cut after 1
    )
    cut[1, -1] = False
    empty = torch.zeros(2, 6, 1)
    found = credit(Segment(empty, empty, rewards, ends, cut, empty), values, bootstrap, 0.9, 0.8)
    for run in range(2):
        ahead = 0.0
        for t in reversed(range(6)):
            if ends[run, t]:
                following, ahead = bootstrap[run, t] if cut[run, t] else 0.0, 0.0
            else:
                following = values[run, t + 1]
            ahead = rewards[run, t] + 0.9 * following - values[run, t] + 0.9 * 0.8 * ahead
            assert found[run, t].item() == pytest.approx(float(ahead), abs=1e-12)


def test_each_run_has_its_settings_loss() -> None:
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 22, 8)
    found = policy_loss([setting for setting in SETTINGS for _ in range(2)], new, old, advantages)
    for row in range(22):
        clip = SETTINGS[row // 2].clip
        data = new[row], old[row], advantages[row]
        torch.testing.assert_close(found[row], cpi(*data) if clip is None else ppo_clip(*data, clip=clip))


def test_a_segment_holds_what_happened() -> None:
    experience = Experience(Follow, [5], [torch.Generator().manual_seed(0)])
    first = experience.collect(48, lambda x: x[..., :2], torch.zeros(1, 1, 2))
    replay, rng = Follow(), torch.Generator().manual_seed(0)
    state, _ = replay.reset(seed=5)
    noise, totals, total = torch.randn(48, 2, generator=rng), [], 0.0
    for t in range(48):
        assert first.observations[0, t].numpy() == pytest.approx(state, rel=1e-5)  # nothing is known yet: 0 and 1
        action = first.observations[0, t, :2] + noise[t]
        torch.testing.assert_close(first.actions[0, t], action)
        state, reward, over, limit, _ = replay.step(action.double().numpy())
        total += reward
        assert first.rewards[0, t].item() == pytest.approx(reward, rel=1e-4)
        assert first.ends[0, t] == (over or limit or t == 47)
        assert first.cut[0, t] == ((limit or t == 47) and not over)
        assert first.following[0, t].numpy() == pytest.approx(state * bool(first.cut[0, t]), rel=1e-5)
        if over or limit:
            totals.append((t + 1, pytest.approx(total)))
            total, state = 0.0, replay.reset()[0]
    assert experience.episodes[0] == totals and first.cut.sum() > 1 and (first.ends & ~first.cut).any()
    experience.take_in()
    second = experience.collect(1, lambda x: x[..., :2], torch.zeros(1, 1, 2))
    seen = first.observations[0].double().numpy()
    assert second.observations[0, 0].numpy() == pytest.approx((state - seen.mean(0)) / seen.std(0), rel=1e-2)
    state, _, over, _, _ = replay.step(second.actions[0, 0].double().numpy())
    assert not over and second.cut[0, 0] and second.ends[0, 0]
    assert second.following[0, 0].numpy() == pytest.approx((state - seen.mean(0)) / seen.std(0), rel=1e-2, abs=1e-3)


def test_normaliser() -> None:
    data = np.random.default_rng(0).normal(3.0, [1.0, 2.0, 0.01], (2, 500, 3))
    normaliser = Normaliser(2, 3)
    for part in np.split(data, 5, axis=1):
        normaliser.update(part)
    expected = (data[:, 0] - data.mean(1)) / np.maximum(data.std(1), 0.1)
    assert normaliser(data[:, 0]) == pytest.approx(expected, abs=2e-2)
    assert normaliser(data[:, 0] + 1e6) == pytest.approx(5.0) and normaliser(data[:, 0] - 1e6) == pytest.approx(-5.0)


def test_score_is_the_end_of_the_run() -> None:
    episodes = [(50, 1.0), (90, 7.0), (91, 2.0), (95, 4.0)]
    assert table.score(episodes, 100) == 3.0
    assert table.score([(9_000 + i, float(i)) for i in range(1, 1000)], 10_000) == np.mean(range(900, 1000))
    with pytest.raises(ValueError, match="last tenth of 1,000 steps"):
        table.score(episodes, 1000)


def outcome(task: str, random: float, scale: float) -> dict:
    """Seed 0 in the paper's own order, seed 1 in the opposite one, the best of all in seed 0."""
    scores = {s.name: [random + scale * s.paper, random - 0.1 * scale * s.paper] for s in SETTINGS}
    kl = {s.name: [0.01, 0.02] for s in SETTINGS}
    return {"task": task, "steps": 20_480, "seeds": 2, "random": random, "scores": scores, "kl": kl}


def test_table_of_known_numbers() -> None:
    first, second = outcome("First-v1", -5.0, 10.0), outcome("Second-v1", 300.0, 2000.0)
    assert table.normalised(first) == pytest.approx(table.normalised(second))
    assert table.normalised(first)[2] == pytest.approx([1.0, -0.1]) and table.normalised(first)[0, 0] < 0
    page = table.markdown([first, second])
    assert "| clipping, 0.2 | 0.82 | 1 | 0.45 ± 0.78 | 1 | 0.015 |" in page
    assert "| adaptive KL, 0.03 | 0.71 | 5.5 | 0.39 ± 0.67 | 5.5 | 0.015 |" in page
    assert "paper's scores: 1.00 (each seed alone: 1.00, -1.00); without the first row 1.00" in page
    assert "| untrained | -5.0 | 300.0 |" in page and "| clipping, 0.2 | -1.3 ± 6.4 | 1,038.0 ± 1,275.6 |" in page


def test_finished_tasks_are_kept(tmp_path, monkeypatch, capsys) -> None:
    small, begun = Hyperparameters(horizon=128, epochs=1), []

    def interrupted(make, *rest):
        begun.append(make)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return Training(make, *rest, small)

    monkeypatch.setattr(table1, "environment", lambda task: Follow)
    monkeypatch.setattr(table1, "versions", dict)
    monkeypatch.setattr(table1, "LEAST_STEPS", 1)
    monkeypatch.setattr(table1, "Hyperparameters", small)
    monkeypatch.setattr(table1, "Training", interrupted)
    command = ["table1.py", "--out", str(tmp_path), "--steps", "500", "--seeds", "2", "--tasks", "A-v0", "B-v0"]
    monkeypatch.setattr(sys, "argv", command)
    assert table1.main() == 130 and [path.name for path in tmp_path.glob("*.json")] == ["A-v0.json"]
    kept = (tmp_path / "A-v0.json").read_bytes()
    assert table1.main() == 0 and len(begun) == 3 and (tmp_path / "A-v0.json").read_bytes() == kept
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text() + "\n"

    found, runs = json.loads(kept), Training(Follow, SETTINGS, range(2), small)
    while runs.experience.steps < 512:
        runs.segment()
    assert found["steps"] == 512 and -50 < found["random"] < -10  # about 7 steps of about -4
    for row, (setting, seed) in enumerate(runs.runs):
        assert found["scores"][setting.name][seed] == table.score(runs.experience.episodes[row], 512)
        assert found["kl"][setting.name][seed] == np.mean(runs.kl[row])
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "3"])
    assert table1.main() == 2
    complaint = " ".join(capsys.readouterr().err.split())
    assert "A-v0.json has 512 steps and 2 seeds; got --steps 512 and --seeds 3" in complaint


def test_the_page_shows_the_results() -> None:
    results = table1.load(ROOT / "examples" / "control" / "results", 120_832, 3)
    assert [result["task"] for result in results] == sorted(table1.TASKS)
    assert table.markdown(results) in (ROOT / "docs" / "control.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [["--steps", "20479"], ["--seeds", "1"]])
def test_options_out_of_range(options, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["table1.py", "--out", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stopped:
        table1.main()
    assert stopped.value.code == 2 and f"{options[0]}: expected at least" in capsys.readouterr().err


def test_without_gymnasium_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[control\]'"):
        table1.environment("Reacher-v5")
