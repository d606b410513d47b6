"""Patterns of `re` in linear time: RE2 finds what `re` finds, or is not asked."""

from __future__ import annotations

import re
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.data.records import Example, Message
from assent.measures import patterns
from assent.rewards.group import Group
from assent.rewards.pool import PooledReward
from assent.rewards.rules import is_slow, regex, rule_reward

pytest.importorskip("re2")

ATOMS = (
    *("a", "b", "k", "s", "i", "\u212a", "\u017f", "\u0130", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[a-c]"),
    *("[^a-c]", r"[^\W]", r"[\s\d]", r"\n", "^", "$", r"\A", r"\Z", "é", "(?:)", "(?i:k)", "(?i:[^s])", "(?s:.)"),
    *("(?m:^)", "(?m:$)", r"(?a:\w)", r"(?a:\s)", "(?i:i)", "(?ai:k)", r"\b", "(?=a)"),
)
TIMES = ("*", "+", "?", "{2}", "{1,3}", "*?", "{0,2}?")
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: (
        st.builds(str.__add__, inner, inner)
        | st.builds("({}|{})".format, inner, inner)
        | st.builds("(?:{}){}".format, inner, st.sampled_from(TIMES))
    ),
    max_leaves=8,
)
TEXTS = st.text(st.sampled_from("abksi\u212a\u017f\u0130K \n\t\x1c\x85\u00a0é1_\u00b2\u0663xß\0"), max_size=8)


@settings(max_examples=250, deadline=None)
@given(pattern=PATTERNS, texts=st.lists(TEXTS, min_size=5, max_size=20))
def test_both_engines_find_the_same(pattern: str, texts: list[str]):
    if (search := patterns.linear(pattern)) is not None:
        for text in texts:
            assert (search(text) is not None) == (re.search(pattern, text) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", ["a|(?ai:k)", "[kK]|a", "(?:ab|a[sS])", "[a-c]|(?ai:s)|z"])
def test_both_cases_of_a_letter_are_no_more_than_these(pattern: str):
    search = patterns.linear(pattern)
    assert search is not None
    for text in ("\u212a", "\u017f", "a\u017f", "k", "K", "as", "aS", "s", "a"):
        assert (search(text) is not None) == (re.search(pattern, text) is not None), ascii(text)


@pytest.mark.parametrize(
    ("pattern", "is_linear"),
    [
        (r"(a+)+$", True),
        (r"(?s)\A<think>.*?</think>\s*<answer>.*</answer>\Z", True),
        (r"(?i)^answer: [a-d]$", True),
        (r"\w+@\w+", True),
        (r"\bword\b", False),
        (r"(a)\1", False),
        (r"(?<=a)b", False),
        (r"a$b", False),
        ("(?i)é", False),
        ("a{2000}", False),
    ],
)
def test_which_patterns_need_a_process(pattern, is_linear):
    assert (patterns.linear(pattern) is not None) == is_linear
    assert is_slow(f"regex={pattern}") == (not is_linear)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(x+x+)+y", "(a|aa)+b", "(.*)*,"])
def test_catastrophic_patterns_take_no_time(pattern):
    start = time.perf_counter()
    assert regex("a" * 5000 + "x" * 5000 + "\n!", pattern=pattern) == 0.0
    assert time.perf_counter() - start < 2


def test_what_re2_cannot_say_is_unscored_after_its_time():
    spec = r"regex=^(?=(a+)+$)b"
    assert is_slow(spec)
    pool = PooledReward("pattern", partial(rule_reward, spec, "pattern"), workers=1, limit=1.0)
    answers = Group(Example((Message("user", "q"),)), ("a" * 50 + "!",), (True,), (1,))
    scores = pool.score([answers])
    pool.close()
    assert np.isnan(scores.values).all() and scores.failures == {"timed out": 1}


def test_without_re2_every_pattern_needs_a_process(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "re2", None)
    patterns.linear.cache_clear()
    assert is_slow("regex=a") and regex("cat", pattern="a") == 1.0
    patterns.linear.cache_clear()


def test_half_a_surrogate_pair_is_text():
    assert regex("a\ud800b", pattern="a.b") == 1.0
