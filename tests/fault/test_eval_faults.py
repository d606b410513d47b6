"""`assent eval` with judges on a server that is biased, fails, talks nonsense or dies; and evaluations that are killed,
which go on to the same bytes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from assent.cli import main
from assent.config import EvalConfig, EvalJudgeConfig, RemoteConfig, SamplingConfig
from assent.evaluate.evaluation import evaluate
from assent.evaluate.results import PolicyTable

from .servers import FakeServer, Handler, hang
from .test_judges import Act, Endpoint, answers, completion, honest, says, shown

FILES = ("evaluation.json", "evaluation.csv", "answers.jsonl", "model_outputs/short.json", "model_outputs/long.json")


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.stop()


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def judged(endpoint: Endpoint, tmp_path: Path) -> Callable[..., int]:
    """`judged(out, *words)`: two files of answers to 12 prompts (or `size`), compared by the judge at `endpoint`; most
    answers of the second are some letters longer. The exit code."""

    def run(out: str, *words: str, size: int = 12, more: tuple[str, ...] = ()) -> int:
        prompts = [{"prompt": f"Question {i}?", "context": "Paris is large."} for i in range(size)]
        cut = [3 - (i + 3) % 10 for i in range(size)]
        made = {
            "short": [f"It is egg number {10 + i}." for i in range(size)],
            "long": [f"It is red number {10 + i}{'!' * -min(d, 0)}."[max(d, 0) :] for i, d in enumerate(cut)],
        }
        for name, texts in made.items():
            rows = [{"prompt": row["prompt"], "response": text} for row, text in zip(prompts, texts, strict=True)]
            write(tmp_path / f"{name}.jsonl", rows)
        file = write(tmp_path / "prompts.jsonl", prompts)
        usual = ["--prompts", file, "--out", str(tmp_path / out), "--judge.cache", str(tmp_path / "verdicts")]
        usual += ["--remote.retries", "0", "--remote.timeout", "5", "--remote.concurrency", "1"]
        given = [f"{name}={tmp_path / f'{name}.jsonl'}" for name in made]
        source = () if "--consistency" in words else ("--rewards", f"openai={endpoint.url}")
        measured = () if "--measures" in words or size > 12 else ("--measures", "win-rate")
        return main(["eval", *given, *more, *usual, *source, *measured, *words])

    return run


def loaded(out: Path) -> PolicyTable:
    return PolicyTable.load(out / "evaluation.json")


def content(out: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """The files, but for the command that gives them again: where verdicts are cached is a part of it."""
    return {name: re.sub(rb'^ "command": .*\n', b"", (out / name).read_bytes(), flags=re.M) for name in names}


# ---- judges with known faults


def test_a_judge_that_always_says_first(endpoint: Endpoint, judged, tmp_path: Path, capsys):
    endpoint.usual = says("[[A]]")
    assert judged("out", size=40) == 0
    table, said = loaded(tmp_path / "out"), capsys.readouterr().out
    found = table.policies[1].numbers["win-rate/judge"]
    assert found.number.value == 0.5 and not found.failures and table.policies[1].outcomes["judge"].ties == 40
    assert "(100% ties)" in said and "verdicts that agree in both orders: 0" in said and "so 100% inconsistent" in said
    assert "long is not clearly different from short by judge (100% inconsistent)." in said
    assert judged("strict", "--judge.contradiction", "leave_out") == 0
    strict = loaded(tmp_path / "strict").policies[1].numbers["win-rate/judge"]
    assert strict.number.value is None and sum(strict.failures.values()) == 12


def test_a_judge_that_loves_length_is_exposed_by_the_rate_at_equal_length(endpoint: Endpoint, judged, tmp_path: Path):
    assert judged("out", size=60) == 0
    table = loaded(tmp_path / "out")
    numbers = table.policies[1].numbers
    rate, adjusted = (numbers[f"{name}/judge"].number for name in ("win-rate", "length-adjusted-win-rate"))
    assert rate.value == pytest.approx(0.65) and table.verdict(table.policies[1]) == "better than"
    assert adjusted.value == pytest.approx(0.5, abs=0.05), "at no difference of length it has no opinion"
    assert table.probes["judge/longer"].number.value == 1


def test_a_policy_that_says_the_same_whatever_it_is_asked_is_named(endpoint: Endpoint, judged, tmp_path: Path, capsys):
    rows = [{"prompt": f"Question {i}?", "response": "I would be glad to help you."} for i in range(12)]
    file = write(tmp_path / "constant.jsonl", rows)
    assert judged("out", more=(f"constant={file}",)) == 0
    words = "gives the same answer to 12 of 12 prompts: 'I would be glad to help you.'"
    assert f"constant: {words}" in capsys.readouterr().out
    assert [words in policy.notes for policy in loaded(tmp_path / "out").policies] == [False, False, True]


# ---- servers that fail


def after(count: int, act: Act) -> list[Act]:
    """Honest answers, and then `act` for a while."""
    return [honest] * count + [act] * 3


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (answers("", 500), "the server answered 500"),
        (answers("slow down", 429, Retry_After="0"), "the server answered 429"),
        (answers("bad key", 401), "the server answered 401"),
        (answers("<html>"), "the server answered something else"),
        (answers('{"choices": []}'), "the server answered something else"),
        (lambda handler: handler.connection.close(), "the server broke off the connection"),
        (hang, "the server timed out"),
    ],
    ids=["500", "429", "401", "html", "no choice", "broken off", "hanging"],
)
def test_questions_without_an_answer_are_failures_and_asked_again(
    act: Act, reason: str, endpoint: Endpoint, judged, tmp_path: Path, capsys
):
    """Three of 24: two comparisons, one in both orders and one in one, are failures; all else is written."""
    endpoint.script = after(2 + 8, act)
    words = ("--remote.timeout", "0.5") if act is hang else ()
    assert judged("out", *words) == 4
    said = capsys.readouterr()
    assert "did not answer 3 questions" in said.out and "--resume asks them alone" in said.err
    assert "Traceback" not in said.err and "(judge 3)" in said.err
    table = loaded(tmp_path / "out")
    found = table.policies[1].numbers["win-rate/judge"]
    assert found.failures == {reason: 2} and found.number.n == 10 and table.unanswered == {"judge": 3}
    asked = len(endpoint.requests)
    assert judged("out", "--resume") == 0 and len(endpoint.requests) == asked + 3, "what is missing alone"
    assert judged("whole") == 0 and len(endpoint.requests) == asked + 3
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not loaded(tmp_path / "out").unanswered


def test_what_passes_is_waited_for(endpoint: Endpoint, judged, tmp_path: Path):
    endpoint.script = [honest] * 10 + [answers("slow down", 429, Retry_After="0"), answers("", 503)]
    assert judged("out", "--remote.retries", "3") == 0
    assert not loaded(tmp_path / "out").policies[1].numbers["win-rate/judge"].failures


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (says(""), "it wrote nothing"),
        (says(None), "it wrote nothing"),
        (says("I had rather not."), "no verdict"),
        (says("[[A]] or [[B]]"), "several verdicts"),
        (says("[[A]]", "length"), "what it wrote was cut off"),
    ],
)
def test_words_that_are_no_verdict_are_failures_of_the_judge(act: Act, reason: str, endpoint, judged, tmp_path: Path):
    """The server answered: nothing is missing, and nothing is asked again."""
    endpoint.script = after(2 + 8, act)
    assert judged("out") == 0
    found = loaded(tmp_path / "out")
    assert found.policies[1].numbers["win-rate/judge"].failures == {reason: 2}
    assert found.probes["judge/unreadable"].number.value == pytest.approx(3 / 24)


def test_a_server_that_dies_is_given_up(endpoint: Endpoint, judged, tmp_path: Path, capsys):
    endpoint.script = [honest] * (2 + 8)
    endpoint.usual = answers("", 500)
    assert judged("out") == 4
    assert len(endpoint.requests) == 2 + 8 + 8
    table = loaded(tmp_path / "out")
    failures = table.policies[1].numbers["win-rate/judge"].failures
    assert failures == {"the server answered 500": 4, "not asked: 8 questions in a row had no answer": 4}
    assert table.probes["judge/null-answer"].number.value is None
    endpoint.usual = honest
    assert judged("out", "--resume") == 0 and judged("whole") == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_server_that_is_not_there_is_noticed_before_anything_is_sampled(
    endpoint: Endpoint, judged, tmp_path: Path, tiny_model_dir: Path, monkeypatch, capsys
):
    monkeypatch.setattr("assent.evaluate.answers.Asking.sample", lambda *_: pytest.fail("sampled"))
    endpoint.usual = answers("no such model", 404)
    for words in ((), ("--consistency", f"openai={endpoint.url}", "--measures", "supported")):
        assert judged("out", *words, more=(f"tiny={tiny_model_dir}",)) == 2
        said = capsys.readouterr().err
        assert "answered 404" in said and ("--consistency: " if words else "--rewards judge: ") in said
        assert not (tmp_path / "out" / "evaluation.json").exists()


# ---- claims by a judge


def claims(*pairs: tuple[str, str]) -> str:
    return json.dumps({"claims": [{"claim": claim, "verdict": verdict} for claim, verdict in pairs]})


def test_claims_that_a_judge_names_and_checks(endpoint: Endpoint, judged, tmp_path: Path):
    texts: list[str] = []

    def checks(handler: Handler) -> None:
        asked = handler.body["messages"][-1]["content"]
        assert "Paris is large." in asked and "Question" in asked or "Two and two" in asked
        (text,) = shown(handler.body)
        texts.append(text)
        said = claims(("a", "supported"), ("b", "supported" if "egg" in text else "contradicted"), ("c", "neither"))
        handler.say(completion(f"<think>Hm.</think>\n```json\n{said}\n```"))

    endpoint.usual = checks
    assert (
        judged("out", "--consistency", f"openai={endpoint.url}", "--measures", "supported", "contradicted", "claims")
        == 0
    )
    short, long = loaded(tmp_path / "out").policies
    assert short.numbers["supported"].number.value == pytest.approx(2 / 3)
    assert long.numbers["supported"].number.value == long.numbers["contradicted"].number.value == pytest.approx(1 / 3)
    assert short.numbers["claims"].number.value == 3 and len(texts) == 25
    assert "claims named and checked by the judge" in loaded(tmp_path / "out").notes[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (claims(), "it makes no claim"),
        ("There is none.", "no JSON of claims"),
        (claims(("a", "true")), "not exactly claims with a verdict each"),
        (claims(("", "supported")), "not exactly claims with a verdict each"),
        ('{"claims": [{"claim": "a", "verdict": "supported", "sure": 1}]}', "not exactly claims with a verdict each"),
        ('{"claims": "a"}', "not exactly claims with a verdict each"),
        ('{"claims": [], "note": 1}', "not exactly claims with a verdict each"),
        (f"{claims(('a', 'supported'))} {claims()}", "several verdicts"),
    ],
)
def test_what_a_judge_of_claims_may_not_say(text: str, reason: str, endpoint: Endpoint, judged, tmp_path: Path):
    endpoint.script = [says(claims(("a", "supported")))] * 3 + [says(text)]
    endpoint.usual = says(claims(("a", "supported")))
    assert judged("out", "--consistency", f"openai={endpoint.url}", "--measures", "supported") == 0
    found = loaded(tmp_path / "out").policies[0].numbers["supported"]
    assert found.failures == {reason: 1} and found.number.value == 1 and found.number.n == 11


def test_a_server_of_claims_that_fails_is_asked_again(endpoint: Endpoint, judged, tmp_path: Path):
    endpoint.script = [says(claims(("a", "supported")))] * 3 + [answers("", 500)]
    endpoint.usual = says(claims(("a", "supported")))
    words = ("--consistency", f"openai={endpoint.url}", "--measures", "supported")
    assert judged("out", *words) == 4 and loaded(tmp_path / "out").unanswered == {"consistency": 1}
    asked = len(endpoint.requests)
    assert judged("out", *words, "--resume") == 0 and len(endpoint.requests) == asked + 1


# ---- killed

GOLD = "def score(prompt, answer):\n    return float(len(answer))\n"
PLACES: dict[str, tuple[str, int]] = {
    "sampling of the second of three": ("assent.evaluate.answers.answered", 2),
    "after sampling of the second, before it is kept": ("assent.evaluate.cache.Cache.put", 2),
    "in the middle of writing the cache": ("pathlib.Path.replace", 3),
    "scoring": ("assent.evaluate.scores.Sources._ask", 9),
    "verdicts": ("assent.rewards.judge.cache.Cache.put", 9),
    "probes of the judge": ("assent.evaluate.evaluation.probes", 1),
    "writing the answers": ("assent.evaluate.evaluation.answer_rows", 1),
    "writing the table": ("assent.evaluate.results.PolicyTable.save", 1),
}
"""Where it is killed -> the function, and at which call of it."""


@pytest.fixture
def policies(tiny_model_dir: Path, endpoint: FakeServer, tmp_path: Path) -> EvalConfig:
    """Three policies of models, scored by a function and compared by a judge."""
    (tmp_path / "gold.py").write_text(GOLD)
    rows = [{"prompt": f"Name {i} colours."} for i in range(6)]
    return EvalConfig(
        tuple(f"{name}={place}" for name, place in zip("abc", _copies(tiny_model_dir, tmp_path), strict=True)),
        write(tmp_path / "prompts.jsonl", rows),
        str(tmp_path / "whole"),
        scorer=f"{tmp_path / 'gold.py'}:score",
        rewards=(f"openai={endpoint.url}",),
        measures=("reward", "win-rate", "characters"),
        precision="fp32",
        sampling=SamplingConfig(max_new_tokens=5),
        judge=EvalJudgeConfig(cache=str(tmp_path / "whole-verdicts")),
        remote=RemoteConfig(concurrency=1, retries=0),
    )


def _copies(model: Path, folder: Path) -> list[str]:
    """The same model under other weights."""
    import torch
    from safetensors.torch import load_file, save_file

    places = []
    for number in range(3):
        place = folder / f"model-{number}"
        place.mkdir()
        for file in model.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        weights = load_file(place / "model.safetensors")
        torch.manual_seed(number)
        moved = {name: weight + 0.05 * torch.randn_like(weight) for name, weight in weights.items()}
        save_file(moved, place / "model.safetensors", metadata={"format": "pt"})
        places.append(str(place))
    return places


def killed(config: EvalConfig, place: str, call: int) -> None:
    """Evaluates in a process of its own, which is killed at the `call`th call of the function `place`."""
    if (pid := os.fork()) == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                owner, _, name = place.rpartition(".")
                function, calls = _found(place), [0]

                def counted(*arguments, **options):
                    calls[0] += 1
                    if calls[0] == call:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                patch.setattr(place, counted)
                evaluate(config)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, place


def _found(place: str):
    import importlib

    parts = place.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(place)


def test_an_evaluation_killed_anywhere_goes_on_to_the_same_bytes(
    policies: EvalConfig, endpoint: Endpoint, tmp_path: Path
):
    names = ("evaluation.json", "evaluation.csv", "answers.jsonl", *(f"model_outputs/{name}.json" for name in "abc"))
    evaluate(policies)
    whole, questions = content(tmp_path / "whole", names), len(endpoint.requests)
    for number, (what, (place, call)) in enumerate(PLACES.items()):
        cache = EvalJudgeConfig(cache=str(tmp_path / f"verdicts-{number}"))
        config = replace(policies, out=str(tmp_path / f"killed-{number}"), judge=cache)
        endpoint.requests.clear()
        killed(config, place, call)
        asked = [json.dumps(body) for _, _, body in endpoint.requests]
        evaluate(replace(config, resume=True))
        assert content(Path(config.out), names) == whole, what
        again = [json.dumps(body) for _, _, body in endpoint.requests[len(asked) :]]
        repeated = set(asked) & set(again)
        assert len(repeated) <= 1, f"{what}: an answer that was kept is not asked for again"
        assert len(endpoint.requests) == questions + len(repeated), what
