"""One way to a person: the loggers of `assent`, shown on standard error, or wherever a program's own logging leads."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import assent
from assent import messages
from assent.foreign import HIDDEN

SOURCE = Path(assent.__file__).parents[1]
SPEAK = """
for name in ("info", "warning", "error"):
    getattr(logging.getLogger("assent.part"), name)(f"100 % {name}")
"""
WHOLE = ["100 % info", "warning: 100 % warning", "error: 100 % error"]


def heard(code: str, **variables: str) -> tuple[str, list[str]]:
    """Standard output of a program, and the lines on its standard error."""
    words = [sys.executable, "-c", f"import logging, sys\n{code}"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr.splitlines()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, width=40)
    monkeypatch.setattr(messages, "console", lambda: console)
    return text


def test_messages_are_their_text_unbroken_and_without_keys(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_API_KEY", "a-key-of-mine")
    log = logging.getLogger("assent.part")
    log.debug("unheard")
    log.info("a notice [red]%d[/red] %s", 1, "word " * 20 + "a-key-of-mine")
    log.warning("100 %")
    log.error(ValueError("wrong"))
    said = "a notice [red]1[/red] " + "word " * 20 + HIDDEN
    assert screen.getvalue().splitlines() == [said, "warning: 100 %", "error: wrong"]


def test_a_program_of_assents_own_says_all_on_standard_error():
    out, err = heard(f"from assent import messages\nmessages.show()\nmessages.show()\n{SPEAK}")
    assert out == "" and err == WHOLE


def test_a_training_process_says_all_and_a_further_rank_only_errors():
    code = f"from assent import distributed\ndistributed.init()\n{SPEAK}"
    assert heard(code)[1] == WHOLE
    assert heard(f"from assent import messages\nmessages.show()\nmessages.show(rank=1)\n{SPEAK}")[1] == WHOLE[2:]


def test_importing_assent_sets_up_nothing():
    code = f"""
import assent
from assent import config, messages
logger = logging.getLogger("assent")
assert not logging.root.handlers and not logger.handlers and logger.propagate and logger.level == logging.NOTSET
{SPEAK}"""
    assert heard(code)[1] == ["100 % warning", "100 % error"]  # as Python has it


@pytest.mark.parametrize("name", ["", "assent"])
def test_a_programs_own_logging_stays_as_it_is(name: str):
    code = f"""
from assent import messages
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
logging.getLogger({name!r}).addHandler(handler)
messages.show()
{SPEAK}"""
    out, err = heard(code)
    lines = [f"{kind} assent.part 100 % {kind.lower()}" for kind in ("WARNING", "ERROR")]
    assert out.splitlines() == lines and err == []  # the root logger's level, until the program sets another


def test_code_that_sets_up_logging_later_doubles_nothing():
    code = f"from assent import messages\nmessages.show()\nlogging.basicConfig(level=logging.INFO)\n{SPEAK}"
    assert heard(code)[1] == WHOLE
