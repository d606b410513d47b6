"""The user's own function: what it is given, what it may return, and what is said when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, NonFiniteError
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, RewardError

PROMPTS = [
    (Message("user", "2+2?"),),
    (Message("system", "Be kind."), Message("user", "3+3?")),
]
GROUPS = [
    Group(
        Example(PROMPTS[0], origin=Origin("rows.jsonl", 1), meta={"solution": "4", "level": 1}),
        ("4", "five"),
        (True, False),
        (1, 2),
        (np.array([7]), np.array([8, 9])),
    ),
    Group(Example(PROMPTS[1], origin=Origin("rows.jsonl", 2), meta={"solution": "6"}), ("6",), (True,), (1,), ([3],)),
]
MESSAGES = [
    [{"role": "user", "content": "2+2?"}],
    [{"role": "user", "content": "2+2?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "3+3?"}],
]


@pytest.fixture
def reward(tmp_path: Path):
    """Writes a function `f` to a file and loads it as a source."""

    def load(source: str) -> FunctionReward:
        path = tmp_path / "mine.py"
        path.write_text("seen = {}\n" + source)
        return FunctionReward(f"{path}:f", "--reward")

    return load


def seen(source: FunctionReward) -> dict:
    return source.function.__globals__["seen"]


def test_trl_signature_for_conversations(reward):
    source = reward("def f(prompts, completions, **kwargs):\n    seen.update(locals())\n    return [1.0, 2, None]\n")
    scores = source.score(GROUPS)
    np.testing.assert_array_equal(scores.values, [1.0, 2.0, np.nan])
    assert scores.values.dtype == np.float64 and scores.failures == {"returned None": 1} and not scores.parts
    assert seen(source)["prompts"] == MESSAGES
    assert seen(source)["completions"] == [[{"role": "assistant", "content": text}] for text in ("4", "five", "6")]
    assert seen(source)["kwargs"] == {
        "solution": ["4", "4", "6"],
        "level": [1, 1, None],
        "completion_ids": [[7], [8, 9], [3]],
    }
    assert source.name == "f"


def test_a_function_gets_what_it_names_and_no_more(reward):
    source = reward("def f(completions, solution, log_extra=None):\n    seen.update(locals())\n    return [0, 0, 0]\n")
    assert source.score(GROUPS).failures == {}
    assert seen(source)["solution"] == ["4", "4", "6"] and seen(source)["log_extra"] is None
    assert set(seen(source)) - {"seen"} == {"completions", "solution", "log_extra"}


@pytest.mark.parametrize("annotation", ["list[str]", "'list[str]'", "Sequence[str]", "typing.List[str]"])
def test_plain_text_where_it_is_asked_for(reward, annotation: str):
    source = reward(
        "import typing\nfrom collections.abc import Sequence\n"
        f"def f(prompts, completions: {annotation}):\n    seen.update(locals())\n"
        "    return [len(c) for c in completions]\n"
    )
    assert source.score(GROUPS).values.tolist() == [1.0, 4.0, 1.0]
    assert seen(source)["prompts"] == ["2+2?", "2+2?", "Be kind.\n\n3+3?"]


def test_trl_annotation_means_messages(reward):
    source = reward(
        "def f(completions: list[list[dict[str, str]]], **kwargs):\n"
        "    return [float(c[0]['content'] == s) for c, s in zip(completions, kwargs['solution'])]\n"
    )
    assert source.score(GROUPS).values.tolist() == [1.0, 0.0, 1.0]


def test_a_reward_function_of_trl_runs_unchanged():
    pytest.importorskip("trl")
    source = FunctionReward("trl.rewards.format_rewards:think_format_reward", "--reward")
    texts = ("<think>\nReason.\n</think>\nAnswer.", "<think>\nReason.\nAnswer.")
    group = Group(Example(PROMPTS[0]), texts, (True, True), (9, 7))
    assert source.score([group]).values.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "body",
    [
        "return np.array([1, 2, 3], np.float32)",
        "return torch.tensor([1.0, 2.0, 3.0])",
        "return [np.float32(1), torch.tensor(2.0), 3]",
        "return (1, 2, 3)",
    ],
)
def test_lists_of_numbers_of_any_kind(reward, body: str):
    source = reward(f"import numpy as np\nimport torch\ndef f(completions):\n    {body}\n")
    assert source.score(GROUPS).values.tolist() == [1.0, 2.0, 3.0]


def test_async_functions(reward):
    source = reward(
        "import asyncio\nasync def f(completions, **kwargs):\n    await asyncio.sleep(0)\n    return [1, None, 3]\n"
    )
    np.testing.assert_array_equal(source.score(GROUPS).values, [1.0, np.nan, 3.0])


@pytest.mark.parametrize(
    "bad", ["float('nan')", "float('inf')", "-float('inf')", "np.float32('nan')", "torch.tensor(torch.nan)"]
)
def test_numbers_that_are_not_finite_name_the_row_and_the_answer(reward, bad: str):
    source = reward(f"import numpy as np\nimport torch\ndef f(completions):\n    return [1, {bad}, 2]\n")
    with pytest.raises(NonFiniteError) as caught:
        source.score(GROUPS)
    assert caught.value.exit_code == 2
    for words in (
        "mine.py:f: f gave",
        "nan" if "nan" in bad else "inf",
        "the answer 'five' to rows.jsonl:1",
        "or None",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1.0, 2.0]", "gave 2 rewards; expected 3: one for each answer"),
        ("return [1.0] * 4", "gave 4 rewards; expected 3"),
        ("return []", "gave 0 rewards; expected 3"),
        ("return 1.0", "returned 1.0; expected a list with one reward for each answer"),
        ("return None", "returned None; expected a list"),
        ("return '123'", "returned '123'; expected a list"),
        ("return {0: 1, 1: 2, 2: 3}", "expected a list"),
        ("return [1.0, '2', 3.0]", "gave '2' for the answer 'five' to rows.jsonl:1; expected a number, or None"),
        ("return [1.0, [2], 3.0]", "gave [2] for the answer 'five'"),
        ("return [1.0, 10 ** 400, 3.0]", "for the answer 'five'"),
        ("raise KeyError('solution')", "raised KeyError: 'solution'"),
        ("raise TimeoutError('busy')", "raised TimeoutError: busy"),
    ],
)
def test_anything_else_names_function_and_file(reward, body: str, words: str):
    source = reward(f"calls = []\ndef f(completions):\n    calls.append(1)\n    {body}\n")
    with pytest.raises(RewardError) as caught:
        source.score(GROUPS)
    assert caught.value.exit_code == 2
    assert "--reward" in str(caught.value) and "mine.py:f: f " in str(caught.value) and words in str(caught.value)
    assert ("mine.py:5)" in str(caught.value)) == body.startswith("raise")
    assert len(source.function.__globals__["calls"]) == 1, "nothing is tried again"


def test_a_function_written_for_plain_text_is_told_how_to_get_it(reward):
    source = reward("def f(completions):\n    return [float(c.strip() == '4') for c in completions]\n")
    with pytest.raises(RewardError, match=r"AttributeError.*annotate the parameter as `completions: list\[str\]`"):
        source.score(GROUPS)
    plain = reward("def f(completions: list[str]):\n    return [c.missing for c in completions]\n")
    with pytest.raises(RewardError) as caught:
        plain.score(GROUPS)
    assert "annotate" not in str(caught.value)


def test_columns_are_checked_before_training(reward):
    examples = [group.example for group in GROUPS]
    source = reward("def f(completions, soluton, **kwargs):\n    return [0, 0, 0]\n")
    with pytest.raises(ConfigError, match="needs 'soluton', which no row has. It can have: prompts, .*solution, level"):
        source.check(examples)
    reward("def f(completions, level, other=1):\n    return [0]\n").check(examples)


def test_tokens_that_were_not_kept(reward):
    groups = [Group(GROUPS[0].example, ("4",), (True,), (1,))]
    with pytest.raises(RewardError, match="asks for completion_ids, but the tokens of these answers were not kept"):
        reward("def f(completion_ids):\n    return [0]\n").score(groups)
    source = reward("def f(completions, **kwargs):\n    seen.update(kwargs)\n    return [0]\n")
    source.score(groups)
    assert "completion_ids" not in seen(source)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine", "must be FILE.py:function or module:function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("math:no_such", "has no function 'no_such'"),
        ("builtins:max", "no signature"),
        ("math:sqrt", "by name"),
    ],
)
def test_functions_that_cannot_be_used(spec: str, words: str):
    with pytest.raises(ConfigError, match="--reward") as caught:
        FunctionReward(spec, "--reward")
    assert words in str(caught.value)
