"""A judge behind /v1/chat/completions that is slow, fails or talks nonsense; and runs that learn from one."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from assent.cli import main
from assent.config import JudgeConfig, RemoteConfig
from assent.data.records import Example, Message, Origin
from assent.http import ServerAnswerError, ServerUnavailable
from assent.rewards.group import Group
from assent.rewards.judge import parse
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.folder import Place
from assent.rewards.judge.source import CACHED, JudgeReward
from assent.train import checkpoint
from assent.train.log import read_metrics

from .servers import FakeServer, Handler, hang

Act = Callable[[Handler], None]


def shown(body: dict) -> list[str]:
    """The answers in a request, without their ends of turn."""
    return re.findall(r"<answer(?: [A-D])? \w{12}>\n(.*?)\n</answer", body["messages"][-1]["content"], re.DOTALL)


def longer(body: dict) -> str:
    """The verdict of a judge that likes length; of one answer, 1 to 10 by its length."""
    lengths = [len(text) for text in shown(body)]
    if len(lengths) == 1:
        return f"Hm.\n[[{min(10, 1 + lengths[0])}]]"
    return "[[C]]" if lengths[0] == lengths[1] else f"[[{'AB'[lengths[1] > lengths[0]]}]]"


class Endpoint(FakeServer):
    """Does what its script says, one act for each request, and then what is usual."""

    def __init__(self) -> None:
        self.script: list[Act] = []
        self.usual: Act = honest
        self.requests: list[tuple[str, dict, dict]] = []
        super().__init__()

    def respond(self, handler: Handler) -> None:
        with self.lock:
            self.requests.append((handler.path, dict(handler.headers), handler.body))
            act = self.script.pop(0) if self.script else self.usual
        act(handler)


def completion(content: object, ended: object = "stop", **more: object) -> dict:
    return {"choices": [{"message": {"content": content}, "finish_reason": ended, **more}]}


def says(content: object, ended: object = "stop", **more: object) -> Act:
    return lambda handler: handler.say(completion(content, ended, **more))


def answers(text: str, status: int = 200, **headers: str) -> Act:
    return lambda handler: handler.say(text, status, **headers)


def honest(handler: Handler) -> None:
    handler.say(completion(longer(handler.body)))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.stop()


@pytest.fixture
def judge(endpoint: Endpoint, tmp_path: Path) -> Callable[..., JudgeReward]:
    def make(url: str = "", remote: RemoteConfig | None = None, **options: object) -> JudgeReward:
        config = JudgeConfig(**{"cache": str(tmp_path / "cache"), **options})  # type: ignore[arg-type]
        remote = remote or RemoteConfig(timeout=5.0, retries=3, budget=20.0, concurrency=2)
        place = Place(torch.device("cpu"))
        source = judge_reward(f"openai={url or endpoint.url}", "judge", config, remote, place)
        source.judge._pause = 0.02  # type: ignore[attr-defined]
        return source

    return make


def group_of(*texts: str, row: int = 1) -> Group:
    example = Example((Message("user", f"question {row}"),), origin=Origin("rows.jsonl", row))
    return Group(example, tuple(texts), (True,) * len(texts), tuple(map(len, texts)))


# ---- what is sent


def test_what_is_asked(endpoint: Endpoint, judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "open-sesame-12")
    source = judge(endpoint.url + "/v1/", model="big", key_env="JUDGE_KEY", max_tokens=77)
    scores = source.score([group_of("aa", "bbbb", "c")])
    np.testing.assert_array_equal(scores.values, [0.5, 1.0, 0.0])
    assert len(endpoint.requests) == 6  # three pairs, both orders
    orders = [tuple(shown(body)) for _, _, body in endpoint.requests]
    assert set(orders) == {(a, b) for a in ("aa", "bbbb", "c") for b in ("aa", "bbbb", "c") if a != b}
    for path, headers, body in endpoint.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer open-sesame-12"
        assert body.keys() == {"model", "messages", "temperature", "max_tokens"}
        assert body["model"] == "big" and body["temperature"] == 0.0 and body["max_tokens"] == 77
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    for url in ("/v1", "/v1/chat/completions", ""):
        judge(endpoint.url + url, seed=1, model="x" + url).score([group_of("p", "qq")])
    assert {path for path, _, _ in endpoint.requests} == {"/v1/chat/completions"}


def test_soft_verdicts_of_an_endpoint(endpoint: Endpoint, judge) -> None:
    """P(A) / (P(A) + P(B)), averaged over both orders; one letter too rare to be listed, or one unknown."""

    def soft(handler: Handler) -> None:
        texts = shown(handler.body)
        listed = {
            ("x", "yy"): {"A": 0.2, "B": 0.6, "C": 0.2},
            ("yy", "x"): {"A": 0.5, "B": 0.3, "C": 0.2},
            ("sure", "no"): {"A": 0.9999, "C": 1e-5},
            ("no", "sure"): {"B": 0.9999, "C": 1e-5},
            ("p", "q"): {"A": 0.6, "C": 0.4},
            ("q", "p"): {"A": 0.6, "B": 0.4},
        }[texts[0], texts[1]]
        best = max(listed, key=lambda letter: listed[letter])
        likeliest = [{"token": letter, "logprob": math.log(p)} for letter, p in listed.items()]
        tokens = [{"token": best, "logprob": math.log(listed[best]), "top_logprobs": likeliest}]
        handler.say(completion(best, logprobs={"content": tokens}))

    endpoint.usual = soft
    source = judge(prompt="pairwise-letter", soft=True)
    scores = source.score([group_of("x", "yy"), group_of("sure", "no", row=2), group_of("p", "q", row=3)])
    first = (0.2 / 0.8 + 0.3 / 0.8) / 2
    np.testing.assert_allclose(scores.values, [first, 1 - first, 1, 0, np.nan, np.nan], rtol=1e-12)
    assert scores.failures == {"no probabilities of the letters": 2}
    assert all(body["logprobs"] is True and body["top_logprobs"] == 20 for _, _, body in endpoint.requests)
    again = source.score([group_of("x", "yy"), group_of("sure", "no", row=2)])
    np.testing.assert_array_equal(again.values, scores.values[:4])
    assert len(endpoint.requests) == 6 and again.metrics[CACHED] == [1.0] * 4
    endpoint.usual = says("A")  # it gives none any more
    assert source.score([group_of("r", "s")]).failures
    with pytest.raises(ServerAnswerError, match="gave no log-probabilities, which --judge.soft needs"):
        judge(prompt="pairwise-letter", soft=True).score([group_of("t", "u")])  # and never did


# ---- faults


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (says("I cannot decide."), parse.NONE),
        (says(""), parse.EMPTY),
        (says(None), parse.EMPTY),
        (says("[[7]]", "length"), "what it wrote was cut off"),
        (says("[[7]]", "content_filter"), "it ended with 'content_filter'"),
        (says("[[11]]"), parse.OUTSIDE),
        (says("[[7]] or [[8]]"), parse.SEVERAL),
    ],
)
def test_verdicts_that_cannot_be_read_are_counted(act: Act, reason: str, endpoint: Endpoint, judge) -> None:
    endpoint.script = [act]
    source = judge(prompt="rating", remote=RemoteConfig(concurrency=1))
    scores = source.score([group_of("aa", "bbbb")])
    assert np.isnan(scores.values[0]) and scores.values[1] == 5.0 and scores.failures == {reason: 1}
    assert scores.metrics["unreadable"] == [1.0, 0.0]
    again = source.score([group_of("aa", "bbbb")])  # it was an answer: it is known, and not asked for again
    assert np.isnan(again.values[0]) and len(endpoint.requests) == 2


@pytest.mark.parametrize(
    "acts",
    [
        [answers("", 500)] * 2,
        [answers("busy", 429, Retry_After="0"), answers("", 503)],
        [lambda handler: handler.connection.close()],
        [lambda handler: time.sleep(0.4) or honest(handler)],
    ],
    ids=["500", "429 and 503", "broken off", "slow"],
)
def test_what_passes_is_waited_for(acts: list[Act], endpoint: Endpoint, judge) -> None:
    endpoint.script = list(acts)
    scores = judge(prompt="rating").score([group_of("aa", "bbbb")])
    np.testing.assert_array_equal(scores.values, [3.0, 5.0])


def test_retry_after_is_heeded(endpoint: Endpoint, judge) -> None:
    endpoint.script = [answers("", 429, Retry_After="1")]
    begun = time.monotonic()
    judge(prompt="rating").score([group_of("aa")])
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (answers("<html>"), ServerAnswerError, "answered '<html>'; expected {\"choices\": "),
        (answers("{}"), ServerAnswerError, "answered '{}'"),
        (answers('{"choices": []}'), ServerAnswerError, "expected {"),
        (answers('{"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}'), ServerAnswerError, "expected"),
        (answers('{"choices": [{"message": {"content": "[[7]]"}}]}'), ServerAnswerError, "expected"),
        (answers("no such model", 404), ServerAnswerError, "answered 404"),
        (answers("bad key", 401), ServerAnswerError, "answered 401"),
        (answers("", 500), ServerUnavailable, "gave no verdict in 4 attempts"),
        (hang, ServerUnavailable, "timed out after 0.3 s (4x)"),
    ],
    ids=["html", "no choices", "no choice", "number", "no reason", "404", "401", "500", "hanging"],
)
def test_what_does_not_pass_is_an_error_and_never_kept(
    act: Act, error: type[Exception], words: str, endpoint: Endpoint, judge, tmp_path: Path
) -> None:
    endpoint.usual = act
    source = judge(prompt="rating", remote=RemoteConfig(timeout=0.3, retries=3, budget=20.0))
    with pytest.raises(error) as raised:
        source.score([group_of("aa")])
    assert words in str(raised.value) and f"judge: the judge {endpoint.url}/v1/chat/completions" in str(raised.value)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    endpoint.usual = honest
    np.testing.assert_array_equal(source.score([group_of("aa")]).values, [3.0])


def test_what_was_answered_before_an_error_is_kept(endpoint: Endpoint, judge) -> None:
    endpoint.script = [honest, honest, honest, answers("", 404)]
    source = judge(prompt="rating", remote=RemoteConfig(concurrency=1))
    with pytest.raises(ServerAnswerError):
        source.score([group_of("a", "bb", "ccc", "dddd", "eeeee")])
    scores = source.score([group_of("a", "bb", "ccc", "dddd", "eeeee")])
    np.testing.assert_array_equal(scores.values, [2, 3, 4, 5, 6])
    assert scores.metrics[CACHED] == [1, 1, 1, 0, 0]


def test_a_budget_is_kept(endpoint: Endpoint, judge) -> None:
    endpoint.usual = hang
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable):
        judge(prompt="rating", remote=RemoteConfig(timeout=60.0, budget=0.5)).score([group_of("aa", "bb", "cc")])
    assert time.monotonic() - begun < 5


def test_models_and_prompts_have_answers_of_their_own(endpoint: Endpoint, judge, tmp_path: Path) -> None:
    asked = []
    text = (Path(parse.__file__).parent / "prompts" / "rating.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text + "# changed\n")
    for options in (
        {},
        {"model": "m"},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"prompt": str(tmp_path / "own.yaml")},
    ):
        judge(**{"prompt": "rating", **options}).score([group_of("aa")])
        asked.append(len(endpoint.requests))
    assert asked == [1, 2, 3, 4, 5]
    judge(prompt="rating").score([group_of("aa")])
    assert len(endpoint.requests) == 5
    assert endpoint.requests[3][2]["seed"] == 0 and "seed" not in endpoint.requests[0][2]


# ---- runs


@pytest.fixture
def grpo(tiny_model_dir: Path, endpoint: Endpoint, tmp_path: Path) -> Callable[..., int]:
    rows = [{"prompt": f"{i} red green?", "completion": "one two three"} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(out: str, *more: str, method: str = "grpo", **changed: object) -> int:
        flags: dict[str, object] = {
            "model.path": tiny_model_dir,
            "model.precision": "fp32",
            "data.train": tmp_path / "prompts.jsonl",
            "data.max_length": 64,
            "out": tmp_path / out,
            "optim.lr": 1e-3,
            "train.batch_size": 2,
            "train.max_steps": 2,
            "train.threads": 1,
            "rollout.responses": 2,
            "sampling.max_new_tokens": 5,
            "rewards.judges": f"openai={endpoint.url}",
            "judge.cache": tmp_path / "verdicts",
            "judge.contradiction": "mean",
            "remote.retries": 0,
        }
        flags |= {name.replace("__", "."): value for name, value in changed.items()}
        words = [text for name, value in flags.items() if value is not None for text in (f"--{name}", str(value))]
        return main([method, *words, *more])

    return run


def result(out: Path) -> tuple[str, list[dict]]:
    weights = (out / "model" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), read_metrics(out / "metrics.jsonl", times=False)


def test_two_steps_from_a_judge_alone(endpoint: Endpoint, grpo, tmp_path: Path, capsys) -> None:
    assert grpo("run") == 0
    said = capsys.readouterr().err
    assert "Asking for the rewards of made-up answers" in said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert row["reward"] == pytest.approx(0.5) and row["unscored"] == 0  # wins and defeats of a group
        assert row["reward/judge/consistency"] == 1.0 and row["reward/judge/unreadable"] == 0.0
        assert 0 <= row["reward/judge/first_shown_wins"] <= 1 and row["reward/judge/time/cached"] >= 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples and all(row["judge/verdicts"][0].keys() == {"against", "outcome"} for row in samples)
    count = len(endpoint.requests)
    assert grpo("again") == 0 and len(endpoint.requests) == count  # all of it is known
    assert result(tmp_path / "again") == result(tmp_path / "run")
    assert all(row["reward/judge/time/cached"] == 1 for row in read_metrics(tmp_path / "again" / "metrics.jsonl"))


@pytest.mark.parametrize("method", ["online-dpo", "xpo", "nash-md"])
def test_a_judge_compares_two_answers_directly(method: str, endpoint: Endpoint, grpo, tmp_path: Path, capsys) -> None:
    """Its verdict on them is which one is preferred, and to Nash-MD the preference itself."""
    assert grpo("run", method=method) == 0
    assert ("preference by win rate" in capsys.readouterr().err) == (method == "nash-md")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples
    for row in samples:
        if method == "nash-md":
            assert row["preference"] == row["reward"] in (0.0, 0.5, 1.0)
        else:
            assert row["preferred"] == {1.0: True, 0.0: False, 0.5: None}[row["reward"]]


def test_a_run_goes_on_to_the_same_bytes(endpoint: Endpoint, grpo, tmp_path: Path, capsys) -> None:
    """It fails in the middle of its third rollout; what was answered by then is not asked again."""
    assert grpo("first", train__max_steps=4, judge__cache=tmp_path / "other") == 0
    whole = len(endpoint.requests)
    endpoint.requests.clear()
    endpoint.script = [honest] * (whole - 6) + [answers("gone", 404)]
    assert grpo("run", train__max_steps=4) == 2
    said = capsys.readouterr().err
    assert "answered 404" in said and "--resume auto" in said
    step = checkpoint.read_manifest(checkpoint.newest_complete(tmp_path / "run" / "checkpoints"))["step"]
    assert 0 < step < 4
    endpoint.script = []
    assert grpo("run", "--resume", "auto", train__max_steps=4) == 0
    assert result(tmp_path / "run") == result(tmp_path / "first")
    bodies = [json.dumps(body) for _, _, body in endpoint.requests]
    assert len(bodies) <= whole + 2 + 4  # the failed one, and those under way beside it


def test_a_resumed_run_has_the_same_judge(endpoint: Endpoint, grpo, tmp_path: Path, capsys) -> None:
    text = (Path(parse.__file__).parent / "prompts" / "rating.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text)
    own = {"judge__prompt": tmp_path / "own.yaml", "judge__contradiction": None}
    assert grpo("run", **own) == 0
    (tmp_path / "own.yaml").write_text(text + "# other\n")
    assert grpo("run", "--resume", "auto", train__max_steps=3, **own) == 2
    assert "--judge.prompt" in capsys.readouterr().err
    (tmp_path / "own.yaml").write_text(text)
    assert grpo("run", "--resume", "auto", train__max_steps=3, judge__model="other", **own) == 2
    assert "--judge.model: None -> 'other'" in capsys.readouterr().err


def test_against_the_rows_answer_in_a_run(endpoint: Endpoint, grpo, tmp_path: Path) -> None:
    """Also where it is evaluated: one answer to each held-out prompt."""
    held_out = {"data__eval": tmp_path / "prompts.jsonl", "train__eval_every": 1, "judge__pairs": "baseline"}
    assert grpo("run", **held_out) == 0
    assert all("one two three" in shown(body) for _, _, body in endpoint.requests)
    assert any("eval/reward/judge/consistency" in row for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"data__eval": "PLACE/prompts.jsonl"},
            "Got a single answer: the evaluation (--data.eval, --data.eval_fraction)",
        ),
        ({"shaping__baseline": "row"}, "Got a single answer: --shaping.baseline row asks about one answer"),
        ({"given__source": "row"}, "Got a single answer: --given.source row asks"),
        ({"judge__prompt": "four-way"}, "shows 4 answers to one prompt. Got 2: --rollout.responses 2"),
        ({"judge__prompt": "pairwyse"}, "there is no prompt 'pairwyse'. Perhaps you meant 'pairwise'"),
        ({"judge__prompt": "rating"}, "--judge.contradiction is about prompts of mode pairwise or choice"),
        ({"judge__key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"rewards__judges": "openai"}, "--rewards.judges: expected openai=URL or model=FOLDER"),
        ({"rewards__judges": None}, "--rewards.judges openai=URL or --rewards.implicit FOLDER"),
    ],
)
def test_what_a_judge_cannot_do_is_said_before_it_is_asked(
    changed: dict[str, object], words: str, endpoint: Endpoint, grpo, tmp_path: Path, capsys
) -> None:
    options = {name: str(v).replace("PLACE", str(tmp_path)) if v is not None else None for name, v in changed.items()}
    assert grpo("run", **options) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not endpoint.requests


# ---- assent score


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "x" * (i % 4 + 1), "rejected": "y" * 3} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_score_by_a_judge(endpoint: Endpoint, pairs: Path, tmp_path: Path, capsys) -> None:
    """Chosen answers of 1, 2, 3, 4 letters against 3: two wrong, a tie, one right."""
    words = ["score", f"openai={endpoint.url}", str(pairs), "--judge.cache", str(tmp_path / "cache")]
    summary = tmp_path / "summary.json"
    assert main([*words, "--out", str(tmp_path / "scores.jsonl"), "--summary", str(summary)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [0, 1, 0, 1, 0.5, 0.5, 1, 0]
    found = json.loads(summary.read_text())
    assert (found["comparisons"]["right"], found["comparisons"]["ties"], found["comparisons"]["wrong"]) == (1, 1, 2)
    assert found["metrics"]["judge/consistency"] == 1.0 and found["metrics"]["judge/unreadable"] == 0.0
    assert "judge/consistency" in capsys.readouterr().out
    assert rows[0]["columns"]["judge/verdicts"] == [{"against": [1], "outcome": 0.0}]
    assert main([*words, "--judge.prompt", "rating", "--summary", str(summary)]) == 0
    assert json.loads(summary.read_text())["reward"]["mean"]["mean"] == pytest.approx(1 + 22 / 8)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--judge.pairs", "baseline"], "Here the row's answers are what is judged: use --judge.pairs all"),
        (["--judge.prompt", "four-way"], "shows 4 answers to one prompt. Got 2: the answers of "),
        (["--judge.engine", "vllm"], "--judge.engine is read only with judge=FOLDER. There is none."),
        (["--judge.attempts", "2"], "--judge.attempts 2 asks again"),
        (["--judge.prompt", "PLACE/own.yaml"], "show a column of its own, {{ row.NAME }}"),
    ],
)
def test_score_refuses_what_a_judge_cannot_do(
    more: list[str], words: str, endpoint: Endpoint, pairs: Path, tmp_path: Path, capsys
) -> None:
    text = "<r>\n  {{ reference }}\n  </r>\n  <a>\n  {{ answer }}\n  </a>\n  <q>\n  {{ prompt }}\n  </q>"
    form = "mode: rating\nscale: [1, 10]\nform: '[[{verdict}]]'\nuser: |\n  "
    (tmp_path / "own.yaml").write_text(form + text)
    options = [word.replace("PLACE", str(tmp_path)) for word in more]
    assert main(["score", f"openai={endpoint.url}", str(pairs), *options]) == 2
    assert words in capsys.readouterr().err and not endpoint.requests


def test_score_refuses_single_answers(endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "q", "completion": "x"}\n')
    assert main(["score", f"openai={endpoint.url}", str(tmp_path / "one.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "Got a single answer: the answers of " in said and "one.jsonl:1" in said and not endpoint.requests
