"""Losses, objectives and estimators of the user's own that do not fit: each is one message that names the file, the
function and what is wrong, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from assent import cli

FILE = """
import torch

EXPECTED = None

def fine(policy_chosen, policy_rejected, *, beta=0.1):
    return torch.nn.functional.softplus(beta * (policy_rejected - policy_chosen))

def unknown(policy_chosen, policy_rejectd): return policy_chosen
def no_default(policy_chosen, *, beta): return beta * policy_chosen
def with_words(policy_chosen, *, kind="a"): return -policy_chosen
def stars(*tensors): return tensors[0]
def two_stars(policy_chosen, **tensors): return policy_chosen
def nothing(*, beta=0.1): return beta
def mixture(policy_chosen, desirable): return policy_chosen
def two_kinds(policy, level, rating): return policy
def undecided(policy, reference): return policy - reference
def lengths(policy, policy_chosen): return policy
def gives_none(policy_chosen): pass
def scalar(policy_chosen): return policy_chosen.sum()
def mean(policy_chosen): return -policy_chosen.mean(0, keepdim=True).expand(1 + len(policy_chosen))
def ints(policy_chosen): return (policy_chosen > 0).long()
def detached(policy_chosen): return -policy_chosen.detach()
def nan(policy_chosen): return -policy_chosen * float("nan")
def raises(policy_chosen): return {}["key"]
def leaves(policy_chosen): raise SystemExit(3)
def in_place(policy_chosen, reference_chosen):
    reference_chosen.mul_(2)
    return reference_chosen - policy_chosen
def of_kl(policy_chosen, kl_chosen): return kl_chosen - policy_chosen
def coupled(policy_chosen, policy_rejected):
    gap = policy_rejected - policy_chosen
    return torch.nn.functional.softplus(gap - gap.mean())
def by_level(policy, level, prompt):
    best = policy.new_full((1 + int(prompt.max()),), -1e9).scatter_reduce(0, prompt, policy, "amax")
    return (best[prompt] - policy) * (level == 0)

def loss(logprobs, advantages): return -logprobs * advantages
def on_reference(logprobs, reference_logprobs): return reference_logprobs - logprobs
def of_responses(logprobs, response): return -logprobs[: 1 + int(response[-1])]
def loss_coupled(logprobs, advantages): return -logprobs * (advantages - advantages.mean() + logprobs.detach().sum())
def by_response(logprobs, advantages, response):
    sums = torch.zeros(1 + int(response[-1])).index_add(0, response, logprobs)
    return -sums[response] * advantages
def loss_nan(logprobs, advantages): return logprobs * float("inf")

def estimator(rewards): return rewards - rewards.mean()
def on_values(rewards, values): return rewards
def by_prompt(rewards, prompt): return rewards
def one_too_many(rewards, token_rewards): return torch.zeros(1 + len(token_rewards), dtype=torch.float64)
def ambiguous(response): return response
no_function = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my.py").write_text(FILE)
    (folder / "broken.py").write_text("import no_such_module\n")
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no, {i}"} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def says(place: Path, tiny_model_dir: Path, tmp_path: Path, capsys) -> Callable[..., tuple[int, str]]:
    """Exit code and message of a command."""

    def run(command: str, *words: str) -> tuple[int, str]:
        shared = f"--model.path {tiny_model_dir} --model.precision fp32 --data.train {place}/pairs.jsonl"
        shared += (
            f" --data.max_length 64 --train.batch_size 4 --train.max_steps 1 --train.threads 1 --out {tmp_path}/run"
        )
        given = " ".join(words).replace("my.py", f"{place}/my.py").replace("broken.py", f"{place}/broken.py")
        code = cli.main([command, *([] if command == "check" else shared.split()), *given.split()])
        said = capsys.readouterr().err.replace(f"{place}/", "")
        assert "Traceback" not in said
        return code, said

    return run


BEFORE = {
    "unknown": "my.py:unknown: there is no tensor 'policy_rejectd'. Perhaps you meant 'policy_rejected'. There are: ",
    "no_default": "my.py:no_default: its option 'beta' has no default. Give it one, or beta:NUMBER.",
    "stars": "my.py:stars: *tensors does not say which tensors it asks for",
    "two_stars": "my.py:two_stars: **tensors does not say which tensors it asks for",
    "nothing": "my.py:nothing asks for no tensor. There are: policy [S], ",
    "mixture": "my.py:mixture asks for what no kind of feedback has together: policy_chosen (pairs), desirable (b",
    "two_kinds": "my.py:two_kinds asks for what no kind of feedback has together: policy (of single responses), level",
    "undecided": "my.py:undecided asks for policy, reference, which do not say what was judged better. Ask for one",
    "lengths": "my.py:lengths asks for what no kind of feedback has together: policy (of single responses), policy_c",
    "no_function": "my.py:no_function: my.py has no function 'no_function'. It has: ",
    "absent": "my.py has no function 'absent'",
    "fine --options bta:0.2": "--options bta:0.2: no such option. Perhaps you meant 'beta'. There are: beta.",
    "gives_none --options beta:1": "--options beta:1: no such option. There is none.",
    "with_words --options kind:1": "kind:1: the default of 'kind' in --objective my.py:with_words is 'a', no such",
    "fine --options beta:nan": "--options beta:nan: must be a finite number that float32 holds.",
    "fine --threshold 3": "--threshold makes yes/no labels, and --objective my.py:fine learns from pairs.",
    "fine --reference.mode cached": "--reference.* is not read: --objective my.py:fine asks for nothing of a reference",
    "of_kl --reference.mode cached": "--objective my.py:of_kl asks for kl_chosen, which compare whole distributions",
    "of_kl --whole_step": "--whole_step is for losses of pairs that ask for policy_chosen and policy_rejected",
}  # fmt: skip


@pytest.mark.parametrize("function", BEFORE)
def test_objectives_that_cannot_be_asked(function: str, says, tmp_path: Path) -> None:
    code, said = says("custom", "--objective", f"my.py:{function}")
    assert code == 2 and BEFORE[function] in said, said
    assert not (tmp_path / "run" / "resolved.yaml").exists()


AT_THE_FIRST_STEP = {
    "gives_none": (2, "my.py:gives_none gave NoneType; expected a tensor [M] = [4], not reduced."),
    "scalar": (2, "my.py:scalar gave [] float32; expected [M] = [4] floating-point numbers, one for each item"),
    "mean": (2, "my.py:mean gave [5] float32; expected [M] = [4] floating-point numbers, one for each item"),
    "ints": (2, "my.py:ints gave [4] int64; expected [M] = [4] floating-point numbers"),
    "detached": (2, "my.py:detached gave numbers without a gradient with respect to policy_chosen"),
    "nan": (3, "my.py:nan gave nan at item 0 of 4, from policy_chosen -"),
    "raises": (2, "my.py:raises raised KeyError: 'key' (my.py:"),
    "leaves": (2, "my.py:leaves raised SystemExit: 3 (my.py:"),
    "in_place": (2, "my.py:in_place changed 'reference_chosen' in place"),
}


@pytest.mark.parametrize("function", AT_THE_FIRST_STEP)
def test_objectives_that_give_what_is_no_loss(function: str, says, tmp_path: Path) -> None:
    code, said = says("custom", "--objective", f"my.py:{function}")
    wanted, words = AT_THE_FIRST_STEP[function]
    assert code == wanted and f"--objective {words}" in said, said
    assert not (tmp_path / "run" / "model").exists()


ONLINE = "--rewards.rules length=5,6 --sampling.max_new_tokens 4 --rollout.responses 2"
METHODS = {
    "grpo --loss.function my.py:detached": "--loss.function my.py:detached: there is no tensor 'policy_chosen'",
    "grpo --loss.function my.py:on_reference --kl.coef 0": "asks for 'reference_logprobs', and --kl.coef 0 has no ref",
    "grpo --loss.function broken.py:f": "broken.py cannot be imported: ModuleNotFoundError: No module named 'no_such",
    "grpo --loss.estimator my.py:on_values": "asks for 'values' of a critic, and GRPO has none. Use: assent ppo",
    "reinforce --rollout.responses 1 --loss.estimator my.py:by_prompt": "my.py:by_prompt asks for 'prompt', to compare",
    "ppo --critic.start policy --loss.function my.py:loss --loss.objective none": "--loss.function takes the place of",
    "grpo --loss.options tau:1": "--loss.options are those of --loss.function or --loss.estimator. Give one of them.",
    "grpo --loss.function my.py:loss --loss.options tau:1": "--loss.options tau:1: no such option. There is none.",
    "grpo --loss.function my.py:loss --loss.clip 0.3": "--loss.clip 0.3 is an option of GRPO's own function",
    "ppo --critic.start policy --loss.estimator my.py:estimator --loss.lam 0.9": "--loss.lam 0.9 is an option of",
    "grpo --loss.function my.py:of_responses": "my.py:of_responses gave [",
    "grpo --loss.estimator my.py:one_too_many": "my.py:one_too_many gave [",
    "grpo --loss.estimator my.py:gives_none": "there is no tensor 'policy_chosen'. There are: rewards [S], token_rewar",
}  # fmt: skip


@pytest.mark.parametrize("words", METHODS)
def test_losses_and_estimators_of_online_methods(words: str, says) -> None:
    command, *rest = words.split()
    code, said = says(command, ONLINE, *rest)
    assert code == 2 and METHODS[words] in said, said


DEPENDS = "its items depend on one another"
COUPLED = {
    "custom --objective my.py:coupled": "my.py:coupled gives ",
    "custom --objective my.py:coupled --whole_step": None,
    "custom --objective my.py:fine": None,
    "custom --objective my.py:by_level": None,
    f"grpo {ONLINE} --loss.function my.py:loss_coupled": "my.py:loss_coupled gives ",
    f"grpo {ONLINE} --loss.function my.py:loss": None,
    f"grpo {ONLINE} --loss.function my.py:by_response": None,
}


@pytest.mark.parametrize("words", COUPLED)
def test_a_loss_whose_items_depend_on_one_another_is_said_once(words: str, says) -> None:
    command, *rest = words.split()
    code, said = says(command, *rest)
    wanted = COUPLED[words]
    assert code == 0, said
    assert said.count(DEPENDS) == (wanted is not None) and (wanted or "") in said, said


def test_a_policy_loss_that_is_not_finite(says) -> None:
    code, said = says("grpo", ONLINE, "--loss.function my.py:loss_nan")
    assert code == 3 and "--loss.function my.py:loss_nan gave -inf at item 0 of " in said and "logprobs -" in said, said


CHECKED = {
    "my.py:ambiguous": "my.py:ambiguous asks for response, as a policy loss and an estimator of advantages may",
    "my.py:lengths": "my.py:lengths asks for what no kind of feedback has together",
    "my.py:unknown": "assent check my.py:unknown: there is no tensor 'policy_rejectd'",
    "my.py:fine --options bta:1": "--options bta:1: no such option. Perhaps you meant 'beta'",
    "my.py:loss --options bta:1": "--loss.options bta:1: no such option. There is none.",
    "broken.py:f": "assent check broken.py:f: broken.py cannot be imported: ModuleNotFoundError",
    "my.py:scalar": "my.py:scalar gave [] float32; expected [M] = [",
    "my.py:fine --out my.py/x.json": "--out my.py/x.json cannot be written: a file is in the way",
}


@pytest.mark.parametrize("words", CHECKED)
def test_what_cannot_be_checked(words: str, says) -> None:
    code, said = says("check", words)
    assert code == 2 and CHECKED[words] in said, said
