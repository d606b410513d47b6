"""Commands of AI feedback before servers of every kind: what they send, in which shapes they answer, what is made of
answers that are nearly verdicts; and files that must survive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from assent.cli import main
from assent.data.formats import load_examples
from assent.data.records import Message, Pair, ToolCall
from assent.rewards.judge.ask import as_chat
from assent.rewards.judge.openai import path_of

from .servers import FakeServer, Handler
from .test_judges import completion, shown

Say = Callable[[Handler], object]


class Endpoint(FakeServer):
    """Answers with what `say` gives; with `status` where that is text."""

    def __init__(self) -> None:
        self.say: Say = by_length
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.status = 400
        super().__init__()

    def respond(self, handler: Handler) -> None:
        with self.lock:
            self.bodies.append(handler.body)
            self.paths.append(handler.path)
        said = self.say(handler)
        handler.say(said, self.status if isinstance(said, str) else 200)


def by_length(handler: Handler) -> object:
    first, second = map(len, shown(handler.body))
    return completion("[[A]]" if first > second else "[[B]]")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{n}?", "chosen": f"good {n}", "rejected": f"b {n}"} for n in range(3)]
    write(tmp_path / "rows.jsonl", *rows)
    (tmp_path / "p.yaml").write_text("principles: [{critique: c, revision: r, choice: x}]\n")
    return tmp_path


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(command: str, folder: Path, source: str, *more: object) -> list[str]:
    own = ["--principles", folder / "p.yaml"] if command == "critique" else []
    begin = [command, folder / "rows.jsonl", "--source", f"j=openai={source}", "--out", folder / "out.jsonl"]
    return [*map(str, [*begin, *own, "--judge.cache", folder / "cache", "--remote.retries", "0", *more])]


def feedback(folder: Path) -> list[tuple]:
    return [row.feedback for row in load_examples(str(folder / "out.jsonl")).examples]


# ---- probabilities of letters


def soft(text: str, *tokens: str, letters: tuple[str, str] = ("A", "B")) -> Say:
    """A completion of these tokens; each "A" of them is likely as the answer shown first is the good one."""

    def say(handler: Handler) -> object:
        first = 0.8 if "good" in shown(handler.body)[0] else 0.3
        chances = dict(zip(letters, (first, 1 - first), strict=True))
        listed = [{"token": letter, "logprob": math.log(p)} for letter, p in chances.items()]
        content = [{"token": token, "top_logprobs": listed if token in letters else []} for token in tokens]
        return completion(text, logprobs={"content": content})

    return say


THOUGHT = ("<think>", "[[", "A", "]]", "?", "</think>")


@pytest.mark.parametrize(
    ("prompt", "say", "reason"),
    [
        ("pairwise", soft("[[A]]", "[[", "A", "]]"), None),
        ("pairwise", soft("<think>[[A]]?</think>[[A]]", *THOUGHT, "[[", "A", "]]"), None),
        ("pairwise", soft("[[A]]", *THOUGHT, "[[", "A", "]]"), None),
        ("pairwise-letter", soft("<think>[[A]]?</think>\nA", *THOUGHT, "\n", "A"), None),
        ("pairwise-letter", soft("A", *THOUGHT, "A"), None),
        ("pairwise-letter", soft(" A", " A", letters=(" A", " B")), None),
        ("pairwise", soft("<think>[[A]]?", "<think>", "[[", "A", "]]", "?"), "its thoughts did not end"),
        ("pairwise", soft("<think>[[A]]?</think>Hm.", *THOUGHT, "Hm."), "no verdict"),
        ("pairwise", soft("[[A]] or [[B]]", "[[", "A", "]]", " or ", "[[", "B", "]]"), "several verdicts"),
        ("pairwise-letter", soft("a", "a", letters=("a", "b")), "a verdict that was not asked for"),
        ("pairwise-letter", soft("A better one", "A", " better one"), "a verdict that was not asked for"),
        ("pairwise-letter", soft("", "A"), "it wrote nothing"),
    ],
)
def test_probabilities_are_read_where_a_written_verdict_would_be(
    prompt: str, say: Say, reason: str | None, folder: Path, endpoint: Endpoint
):
    """(0.8 + (1 - 0.3)) / 2 = 0.75."""
    endpoint.say = say
    more = ["--judge.prompt", prompt, "--judge.soft", "--summary", folder / "s.json"]
    assert main(words("judge", folder, endpoint.url, *more)) == (0 if reason is None else 2)
    told = json.loads((folder / "s.json").read_text())["judges"]["j"]
    if reason is None:
        assert all(own[1].share == pytest.approx(0.75) and own[1].chosen == 0 for own in feedback(folder))
    else:
        assert told["failures"] == {reason: 3} and not (folder / "out.jsonl").exists()


def test_a_server_without_log_probabilities_is_found_out_at_once_and_may_learn_them(folder: Path, endpoint, caplog):
    endpoint.say = lambda handler: completion("A", logprobs=None)
    more = ["--judge.prompt", "pairwise-letter", "--judge.soft"]
    assert main(words("judge", folder, endpoint.url, *more)) == 2
    assert "gave no log-probabilities, which --judge.soft needs" in caplog.text and len(endpoint.bodies) == 2
    endpoint.say = soft("A", "A")
    assert main(words("judge", folder, endpoint.url, *more)) == 0


# ---- shapes of requests and answers


def test_a_whole_address_is_asked_as_it_stands():
    for base, path in {
        "": "/v1/chat/completions",
        "/v1": "/v1/chat/completions",
        "/v1/chat/completions": "/v1/chat/completions",
        "/api/v1": "/api/v1/chat/completions",
        "/v1beta/openai/chat/completions": "/v1beta/openai/chat/completions",
    }.items():
        assert path_of(base) == path


def test_fields_of_the_request_that_a_server_wants_otherwise(folder: Path, endpoint: Endpoint, caplog):
    own = ["max_completion_tokens:99", "max_tokens:null", "temperature:null", "reasoning_effort:low"]
    own += ['chat_template_kwargs:{"enable_thinking": false}']
    assert main(words("judge", folder, endpoint.url + "/x/chat/completions", "--judge.body", *own)) == 0
    assert {*endpoint.paths} == {"/x/chat/completions"}
    for body in endpoint.bodies:
        assert body.keys() == {"max_completion_tokens", "reasoning_effort", "chat_template_kwargs", "messages"}
        assert (body["max_completion_tokens"], body["reasoning_effort"]) == (99, "low")
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
    count = len(endpoint.bodies)
    (folder / "out.jsonl").unlink()
    url = endpoint.url + "/x/chat/completions"
    assert main(words("judge", folder, url, "--judge.body", "max_completion_tokens:98", *own[1:])) == 0
    assert len(endpoint.bodies) == 2 * count  # another question
    assert main(words("judge", folder, url, "--resume", "--judge.body", "stream:true")) == 2
    assert "--judge.body stream: it is set by what is asked." in caplog.text
    model = ["contrast", str(folder), "--prompts", str(folder / "rows.jsonl"), "--out", str(folder / "c.jsonl")]
    assert main([*model, "--judge.body", "a:1"]) == 2
    assert "--judge.body is read only where MODEL is openai=URL" in caplog.text


def test_text_in_parts_is_read_without_its_thoughts(folder: Path, endpoint: Endpoint):
    def say(handler: Handler) -> object:
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "[[C]]"}]}
        verdict = by_length(handler)["choices"][0]["message"]["content"]
        return completion([thought, {"type": "text", "text": verdict}])

    endpoint.say = say
    assert main(words("judge", folder, endpoint.url)) == 0
    assert [own[1] for own in feedback(folder)] == [Pair(0, 1, annotator="j")] * 3


def test_what_a_server_said_last_is_shown(folder: Path, endpoint: Endpoint, capsys):
    endpoint.say = lambda handler: "too long: 9 tokens" if "good 1" in str(handler.body) else by_length(handler)
    assert main(words("judge", folder, endpoint.url, "--summary", folder / "s.json")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "j, no verdict: 1: the server answered 400" in said and "too long: 9 tokens" in said
    assert "too long" in json.loads((folder / "s.json").read_text())["judges"]["j"]["cost"]["said"]


def test_two_spellings_are_one_server(folder: Path, endpoint: Endpoint, caplog):
    more = [f"k=openai={endpoint.url}/v1/"]
    begin = words("judge", folder, endpoint.url)
    assert main([*begin[:4], *more, *begin[4:]]) == 2
    assert "'k' is the same model as another" in caplog.text and not endpoint.bodies
    prompts = ["--prompts", str(folder / "rows.jsonl"), "--out", str(folder / "out.jsonl")]
    assert main(["contrast", endpoint.url, *prompts]) == 2
    assert "MODEL: a server is openai=URL" in caplog.text


# ---- calls of tools


CALL = {"type": "function", "function": {"name": "look", "arguments": {"a": 1}}}


def test_answers_that_call_tools_are_shown_with_their_calls(folder: Path, endpoint: Endpoint):
    other = {**CALL, "function": {"name": "look", "arguments": {"a": 2}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in (CALL, other)]
    write(
        folder / "rows.jsonl",
        {"prompt": [{"role": "user", "content": "q"}], "chosen": turns[:1], "rejected": turns[1:]},
    )
    endpoint.say = lambda handler: completion("[[A]]" if '{"a": 2}' in shown(handler.body)[0] else "[[B]]")
    assert main(words("judge", folder, endpoint.url)) == 0
    assert feedback(folder)[0][1] == Pair(1, 0, annotator="j")
    assert shown(endpoint.bodies[-1])[0].startswith("(calls look with {")


def test_conversations_with_tools_are_criticised_and_answers_that_only_call_are_not(
    folder: Path, endpoint: Endpoint, caplog
):
    endpoint.say = lambda handler: completion("said")
    user, call = {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}
    used = [user, call, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}]
    write(folder / "rows.jsonl", {"messages": used}, {"messages": [user, call]})
    assert main(words("critique", folder, endpoint.url)) == 0
    assert "rows.jsonl:2: responses[0]: calls a tool; what is revised are answers in words" in caplog.text
    turns = endpoint.bodies[1]["messages"]
    name = turns[1]["tool_calls"][0]["id"]
    assert turns[2] == {"role": "tool", "content": "3", "tool_call_id": name} and turns[3]["content"] == "It is 3."


def test_calls_and_results_are_named_in_their_order():
    calls = (ToolCall("f", "{}", "id-1"), ToolCall("g", "{}"))
    talk = [Message("assistant", "", tool_calls=calls), Message("tool", "x", tool_call_id="id-1"), Message("tool", "y")]
    first, *results = as_chat(talk)
    assert [call["id"] for call in first["tool_calls"]] == ["id-1", "call_0_1"]
    assert [turn["tool_call_id"] for turn in results] == ["id-1", "call_0_1"]
    assert as_chat([Message("user", "u")]) == [{"role": "user", "content": "u"}]


# ---- principles, soft labels, files


def test_each_revision_has_another_principle(folder: Path, endpoint: Endpoint):
    endpoint.say = lambda handler: completion(f"{len(endpoint.bodies)}")
    named: Mapping = {"principles": [{"name": f"n{k}", "critique": f"c{k}", "revision": "r"} for k in range(3)]}
    (folder / "p.yaml").write_text(json.dumps(named))
    assert main(words("critique", folder, endpoint.url, "--revisions", "4")) == 0
    rows = load_examples(str(folder / "out.jsonl")).examples
    drawn = [[step["principle"] for step in row.meta["chain"][1:]] for row in rows]
    assert len(drawn) == 6 and all({*one[:3]} == {"n0", "n1", "n2"} for one in drawn)
    assert len({one[0] for one in drawn}) > 1 and len({tuple(one) for one in drawn}) > 2


def test_soft_labels_that_count_as_whole_votes_are_said(folder: Path, endpoint: Endpoint, caplog):
    endpoint.say = soft("A", "A")
    more = ["--judge.prompt", "pairwise-letter", "--judge.soft"]
    assert main(words("judge", folder, endpoint.url, *more)) == 0
    out = str(folder / "out.jsonl")
    assert main(["aggregate", out, "--out", str(folder / "a.jsonl"), "--method", "majority"]) == 0
    assert "aggregate: soft labels of pairs count as whole votes (j 3)" in caplog.text
    begin = words("judge", folder, endpoint.url, *more, "--judge.model", "other")
    begin[begin.index("--source") + 1] = f"k=openai={endpoint.url}"
    begin[begin.index("--out") + 1] = str(folder / "k.jsonl")
    assert main(begin) == 0
    assert main(["agree", out, str(folder / "k.jsonl")]) == 0
    assert "agree: soft labels of pairs count as whole votes (j 3, k 3)" in caplog.text


def test_nothing_that_is_read_is_written_over(folder: Path, endpoint: Endpoint, caplog):
    rows, out = folder / "rows.jsonl", folder / "out.jsonl"
    before = rows.read_bytes()
    (folder / "link.jsonl").symlink_to(rows)
    url, prompts = endpoint.url, ["--prompts", str(rows)]
    for given in (
        words("judge", folder, url, "--resume", "--out", rows),
        words("judge", folder, url, "--resume", "--out", folder / "link.jsonl"),
        words("judge", folder, url, "--summary", rows),
        words("judge", folder, url, "--summary", out),
        words("critique", folder, url, "--summary", folder / "p.yaml"),
        ["contrast", f"openai={url}", *prompts, "--out", str(rows), "--resume"],
        ["aggregate", str(rows), "--out", str(out), "--summary", str(rows)],
        ["agree", str(rows), "--summary", str(rows)],
        ["curate", str(rows), "--out", str(out), "--dropped", str(rows)],
    ):
        caplog.clear()
        assert main(given) == 2
        assert "which would be lost. Choose another name." in caplog.text or "are the same file" in caplog.text, given
    assert rows.read_bytes() == before and not out.exists() and not endpoint.bodies


def test_a_file_of_another_shape_is_read_by_what_the_message_says(folder: Path, endpoint: Endpoint, caplog):
    endpoint.say = lambda handler: completion("said")
    write(folder / "rows.jsonl", {"asked_text": "q", "answer_text": "a"})
    assert main(words("critique", folder, endpoint.url)) == 2
    assert "name the columns with --columns EXPECTED:FOUND" in caplog.text and "--data." not in caplog.text
    assert (
        main(words("critique", folder, endpoint.url, "--columns", "prompt:asked_text", "completion:answer_text")) == 0
    )


@pytest.mark.parametrize("command", ["judge", "critique"])
def test_where_no_row_came_of_it_there_is_no_file(command: str, folder: Path, endpoint: Endpoint, caplog):
    endpoint.say = lambda handler: completion("")
    assert main(words(command, folder, endpoint.url)) == 2
    assert not (folder / "out.jsonl").exists()
    endpoint.status, tries = 503, len(endpoint.bodies) + {"judge": 2, "critique": 1}[command]
    endpoint.say = lambda handler: completion("[[A]]") if len(endpoint.bodies) <= tries else "gone"
    assert main(words(command, folder, endpoint.url, "--judge.model", "m")) == 4
    assert "nothing is written, but servers left questions without an answer" in caplog.text
    assert not (folder / "out.jsonl").exists()
