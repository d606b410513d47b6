"""The user's own function: what it is given, what it may return, and what is said when it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent.data.records import Example, Message, Origin, ToolCall
from assent.errors import ConfigError, NonFiniteError
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, Progress, RewardError

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
TEXT = [
    replace(group, example=replace(group.example, prompt_text=f"{group.example.prompt[-1].content}"))
    for group in GROUPS
]
"""The same answers to rows whose prompt is text."""
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
    more = seen(source)["kwargs"]
    assert {name: more[name] for name in ("solution", "level", "completion_ids")} == {
        "solution": ["4", "4", "6"],
        "level": [1, 1, None],
        "completion_ids": [[7], [8, 9], [3]],
    }
    assert set(more) == {"solution", "level", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    assert source.name == "f"


def test_rows_whose_prompt_is_text_give_text(reward):
    source = reward("def f(prompts, completions, **kwargs):\n    seen.update(locals())\n    return [1, 2, 3]\n")
    source.score(TEXT)
    assert seen(source)["prompts"] == ["2+2?", "2+2?", "3+3?"] and seen(source)["completions"] == ["4", "five", "6"]
    source.score([TEXT[0], GROUPS[1]])  # each answer as its own row
    assert seen(source)["prompts"] == ["2+2?", "2+2?", MESSAGES[2]]
    assert seen(source)["completions"] == ["4", "five", [{"role": "assistant", "content": "6"}]]


def test_messages_are_given_whole(reward):
    call = ToolCall("add", '{"a": 1}', "c1")
    prompt = (
        Message("user", "1+1?"),
        Message("assistant", "", reasoning="Add.", tool_calls=(call,)),
        Message("tool", "2", name="add", tool_call_id="c1"),
    )
    example = Example(prompt, tools='[{"type": "function"}]', template_kwargs={"thinking": False})
    source = reward("def f(prompts, tools, **kwargs):\n    seen.update(locals())\n    return [0]\n")
    source.check([example])
    source.score([Group(example, ("2",), (True,), (1,))])
    function = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert seen(source)["prompts"][0][1:] == [
        {"role": "assistant", "content": "", "reasoning_content": "Add.", "tool_calls": [function]},
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"},
    ]
    assert seen(source)["tools"] == [[{"type": "function"}]]
    assert seen(source)["kwargs"]["chat_template_kwargs"] == [{"thinking": False}]


def test_where_the_run_stands(reward):
    source = reward("def f(completions, trainer_state):\n    seen.update(locals())\n    return [0, 0, 0]\n")
    source.score([replace(group, progress=Progress(30, 120, 30)) for group in GROUPS])
    state = seen(source)["trainer_state"]
    assert (state.global_step, state.max_steps, state.epoch, state.num_train_epochs) == (30, 120, 1.0, 4)
    assert state.is_world_process_zero and not state.log_history
    source.score(GROUPS)
    assert seen(source)["trainer_state"].global_step == 0


def test_what_a_function_writes_down(reward):
    source = reward(
        "import numpy as np\n"
        "def f(completions, log_extra, log_metric):\n"
        "    log_extra('read', ['a', None, 2.5])\n    log_extra('odd', np.array([1, 2, 3]))\n"
        "    log_extra('any', [[1], float('nan'), True])\n"
        "    log_metric('right', 1)\n    log_metric('right', np.float32(0.5))\n    return [0, 0, 0]\n"
    )
    scores = source.score(GROUPS)
    assert scores.columns == {"read": ["a", None, 2.5], "odd": [1, 2, 3], "any": ["[1]", "nan", True]}
    assert scores.metrics == {"right": [1.0, 0.5]}
    for bad, words in [
        ("log_extra('x', ['a'])", "log_extra('x') got 1 values; expected 3"),
        ("log_metric('x', 'high')", "log_metric('x') got 'high'; expected a number"),
    ]:
        with pytest.raises(RewardError) as caught:
            reward(f"def f(log_extra, log_metric):\n    {bad}\n    return [0, 0, 0]\n").score(GROUPS)
        assert words in str(caught.value) and "mine.py:f: f" in str(caught.value)


def test_a_function_gets_what_it_names_and_no_more(reward):
    source = reward("def f(completions, solution, judge=None):\n    seen.update(locals())\n    return [0, 0, 0]\n")
    assert source.score(GROUPS).failures == {}
    assert seen(source)["solution"] == ["4", "4", "6"] and seen(source)["judge"] is None
    assert set(seen(source)) - {"seen"} == {"completions", "solution", "judge"}


@pytest.mark.parametrize("annotation", ["list[str]", "'list[str]'", "Sequence[str]", "typing.List[str]"])
def test_a_function_that_declares_text_is_refused_for_messages(reward, annotation: str):
    source = reward(
        "import typing\nfrom collections.abc import Sequence\n"
        f"def f(prompts, completions: {annotation}):\n    return [len(c) for c in completions]\n"
    )
    source.check([group.example for group in TEXT])
    assert source.score(TEXT).values.tolist() == [1.0, 4.0, 1.0]
    with pytest.raises(ConfigError, match=r"as text, but where a row's prompt is messages \(rows.jsonl:1\)"):
        source.check([group.example for group in GROUPS])


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
    assert caught.value.exit_code == 3
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
        ("return [1.0, 10 ** 400, 3.0]", "gave a number above 1.8e+308 for the answer 'five'"),
        ("return [1.0, -(10 ** 5000), 3.0]", "gave a number above 1.8e+308 for the answer 'five'"),
        (
            "return [1.0, 1e39, 3.0]",
            "gave 1e+39 for the answer 'five' to rows.jsonl:1; expected a finite number within",
        ),
        ("return [1.0, -3.5e38, 3.0]", "gave -3.5e+38 for the answer 'five'"),
        ("return [1.0, 2j, 3.0]", "gave 2j for the answer 'five'"),
        ("raise KeyError('solution')", "raised KeyError: 'solution'"),
        ("raise TimeoutError('busy')", "raised TimeoutError: busy"),
    ],
)
def test_anything_else_names_function_and_file(reward, body: str, words: str):
    source = reward(f"calls = []\ndef f(completions):\n    calls.append(1)\n    {body}\n")
    with pytest.raises(RewardError) as caught:
        source.score(GROUPS)
    assert caught.value.exit_code == (3 if isinstance(caught.value, NonFiniteError) else 2)
    assert "--reward" in str(caught.value) and "mine.py:f: f " in str(caught.value) and words in str(caught.value)
    assert ("mine.py:5)" in str(caught.value)) == body.startswith("raise")
    assert len(source.function.__globals__["calls"]) == 1, "nothing is tried again"


def test_a_function_for_the_other_kind_of_prompts_is_told_which_it_gets(reward):
    for_text = reward("def f(completions):\n    return [float(c.strip() == '4') for c in completions]\n")
    assert for_text.score(TEXT).values.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(RewardError, match=r"AttributeError.*prompts of the rows are messages, so each .* is a list of"):
        for_text.score(GROUPS)
    for_messages = reward("def f(completions):\n    return [len(c[0]['content']) for c in completions]\n")
    with pytest.raises(
        RewardError, match="TypeError.*prompts of the rows are text, so each of the completions is text"
    ):
        for_messages.score(TEXT)


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
