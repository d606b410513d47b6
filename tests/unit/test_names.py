"""What is suggested for a mistyped name, over options of commands."""

from __future__ import annotations

import pytest

from assent.cli import COMMANDS
from assent.config import settings
from assent.names import nearest, suggestion

CURATE = [option.name for option in settings.options(COMMANDS["curate"].config)]


@pytest.mark.parametrize("command", ["curate", "label", "agree"])
def test_an_option_with_one_letter_less_is_suggested(command: str):
    """In its section, in its last part, or in both."""
    known = [option.name for option in settings.options(COMMANDS[command].config)]
    lasts = [name.rpartition(".")[2] for name in known]
    for name in known:
        section, _, last = name.rpartition(".")
        if len(last) < 5 or lasts.count(last) > 1:
            continue
        short = last[:2] + last[3:]
        if len(section) > 4:
            assert nearest(f"{section[:2]}{section[3:]}.{last}", known) == name
            assert nearest(f"{section[:2]}{section[3:]}.{short}", known) == name
        assert nearest(f"{section}.{short}" if section else short, known) == name


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("topcs.number", " Perhaps you meant '--topics.number'."),
        ("topcs.count", " There are: --topics.number, --topics.model, --topics.method."),
        ("xyz.count", ""),  # 'count' is spelt like 'out'
        ("chose.bugdet", " Perhaps you meant '--choose.budget'."),
        ("languages", " Perhaps you meant '--filter.languages'."),
        ("qqqqq", ""),
    ],
)
def test_what_is_said_of_a_mistyped_option(typed: str, hint: str):
    assert suggestion(typed, CURATE, "--") == hint
