"""Files of the user's that cannot be run: one message with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from assent.errors import ConfigError
from assent.functions import load_function


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import math\nx = 1 / 0\n", "ZeroDivisionError: division by zero (FILE:2)"),
        ("def a():\n    return {}['key']\n\na()\n", "KeyError: 'key' (FILE:2)"),
        ("import json\njson.loads('{')\n", "(FILE:2)"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all' (FILE:1)"),
        ("raise RuntimeError\n", "cannot be imported: RuntimeError (FILE:1)"),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (FILE:2)"),
        ("assert False, 'not here'\n", "AssertionError: not here (FILE:1)"),
        ("\0", "cannot be imported: SyntaxError"),
    ],
)
def test_whatever_a_file_raises_is_one_message(text: str, words: str, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{file}:f", "--rewards.functions")
    said = str(caught.value)
    assert said.startswith(f"--rewards.functions {file}:f: {file} cannot be imported: ")
    assert words.replace("FILE", str(file)) in said and "\n" not in said


def test_a_file_is_a_module_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Dataclasses find their module; each load begins anew; no other module of that name is in the way."""
    (tmp_path / "json.py").write_text(
        "from __future__ import annotations\nimport dataclasses, json\n\n"
        "@dataclasses.dataclass\nclass Row:\n    x: list[int] | None = None\n\n"
        "calls = []\n\ndef f():\n    calls.append(1)\n    return len(calls), json.dumps(dataclasses.asdict(Row()))\n"
    )
    monkeypatch.chdir(tmp_path)
    first, second = load_function("json.py:f", "--scorer"), load_function("json.py:f", "--scorer")
    assert first() == (1, '{"x": null}') and first()[0] == 2 and second()[0] == 1
    (tmp_path / "mine.py").write_text("\n\n{}['key']\n")
    with pytest.raises(ConfigError, match=r"KeyError: 'key' \(.*mine\.py:3\)"):
        load_function("mine.py:f", "--scorer")


def test_a_module_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a_reward_that_raises.py").write_text("\nraise OverflowError('too large')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"OverflowError: too large \(.*a_reward_that_raises\.py:2\)"):
        load_function("a_reward_that_raises:f", "--scorer")


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing\.py cannot be imported: FileNotFoundError"):
        load_function(f"{tmp_path}/nothing.py:f", "--scorer")
