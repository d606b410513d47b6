"""`assent check` says of a known formula that it learns as the table's own does, and of its opposite that it does not.
One seed and few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assent.cli import main

FILE = """
import torch
import torch.nn.functional as F


def dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta=0.1):
    return -F.logsigmoid(beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)))


def opposite(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta=0.1):
    return dpo(policy_rejected, policy_chosen, reference_rejected, reference_chosen, beta=beta)


def labelled(policy, reference, desirable, *, beta=0.1):
    return F.softplus(torch.where(desirable.bool(), -beta, beta) * (policy - reference))


def clipped(logprobs, old_logprobs, advantages, *, clip=0.2):
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def climbing(logprobs, advantages):
    return logprobs * advantages


def mean_of_group(rewards, prompt):
    number = torch.bincount(prompt)
    mean = torch.zeros(len(number), dtype=rewards.dtype).index_add(0, prompt, rewards) / number
    return rewards - mean[prompt]


def one_step(token_rewards, values):
    return token_rewards - values
"""


@pytest.fixture
def check(tmp_path: Path, capsys):
    """What `assent check` prints, and its numbers."""
    (tmp_path / "my.py").write_text(FILE)

    def run(function: str, *words: str, steps: int = 30) -> tuple[str, dict]:
        out = tmp_path / "out.json"
        arguments = [f"{tmp_path}/my.py:{function}", "--seeds", "1", "--steps", f"{steps}", "--out", str(out), *words]
        assert main(["check", *arguments]) == 0
        return capsys.readouterr().out, json.loads(out.read_text())

    return run


def test_dpos_own_formula_closes_what_dpo_does(check) -> None:
    said, found = check("dpo")
    own, dpo = found["trained"]
    assert own["closed"] == dpo["closed"] > 0.5 and own["reward"] == dpo["reward"] > 0.4 and dpo["name"] == "DPO"
    assert (
        found["learns"] and found["kind"] == "an objective" and found["options"] == {"beta": 2.0} and found["beta"] == 2
    )
    assert f"my.py:dpo learns: it closes {own['closed']:.0%} of the regret to the exact optimum, DPO" in said


def test_the_wrong_sign_does_not_learn(check) -> None:
    said, found = check("opposite")
    assert not found["learns"] and found["trained"][0]["closed"] < 0 and found["trained"][1]["closed"] > 0.5
    assert "my.py:opposite does not learn: the expected reward fell. Is a sign the wrong way round?" in said


def test_a_weight_of_the_kl_that_was_given_is_that_of_the_optimum(check) -> None:
    _, found = check("dpo", "--options", "beta:4")
    assert found["beta"] == 4 and found["trained"][0]["closed"] == found["trained"][1]["closed"] > 0.5


def test_labels(check) -> None:
    _, found = check("labelled")
    assert found["learns"] and found["trained"][0]["closed"] != found["trained"][1]["closed"]


def test_policy_losses(check) -> None:
    said, found = check("clipped", "--options", "clip:0.2")
    own, clip, reinforce = found["trained"]
    assert own["closed"] == clip["closed"] > 0.3 and reinforce["name"] == "REINFORCE"
    assert "my.py:clipped is a policy loss, clip 0.2." in said
    said, found = check("climbing", steps=8)
    assert not found["learns"] and "does not learn" in said


def test_estimators(check) -> None:
    _, found = check("mean_of_group")
    assert found["learns"] and [each["name"] for each in found["trained"]][1] == "REINFORCE"
    _, found = check("one_step", steps=2)
    assert [each["name"] for each in found["trained"]][1] == "PPO (GAE)"
