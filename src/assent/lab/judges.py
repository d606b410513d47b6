"""A simulated judge of the assistant world behind a real address: what a language model would be asked over
/v1/chat/completions, answered by the gold rubric with an annotator's faults.

It reads the prompts that assent ships: two answers are compared, one is rated. Asked in a chat, as `assent critique`
asks, for a critique of an answer it says what the rubric finds wrong; for a revision it writes the better one of the
answer and one of each decent style. Shown `first` and `second` it prefers the first with the probability of
`assent.lab.annotators`, so a taste for what stands first (`position_bias`), length and carelessness can be dialled; a
share `unreadable` of its replies is no verdict. What it draws depends on the seed, the texts and their order alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from assent.data.records import Message
from assent.errors import DataError
from assent.lab import rubric
from assent.lab.annotators import Annotator, preference_logit, rate
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.world import AssistantWorld

ANSWER = re.compile(r"<answer(?: [A-D])? \w{12}>\n(.*?)\n</answer", re.DOTALL)
REQUEST = re.compile(r"<request \w{12}>\n(.*?)\n</request", re.DOTALL)
TURN = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)
NO_VERDICT = "I would rather not say."


class GoldJudge:
    """An endpoint at `url`, up while it is entered, on `port` where one is given. `asked` counts its replies."""

    def __init__(
        self, world: AssistantWorld, annotator: Annotator, *, unreadable: float = 0.0, seed: int = 0, port: int = 0
    ) -> None:
        self.world, self.annotator, self.unreadable, self.seed = world, annotator, unreadable, seed
        self.asked = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> GoldJudge:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The completion for a request."""
        text = body["messages"][-1]["content"]
        if not REQUEST.search(text):
            return _completion(self._rewritten([Message(m["role"], m["content"]) for m in body["messages"]], body))
        prompt, shown = conversation(REQUEST.findall(text)[0]), ANSWER.findall(text)
        rng = np.random.default_rng(self._seed_of(text, int(body.get("seed", 0))))
        if rng.random() < self.unreadable:
            return _completion(NO_VERDICT)
        if len(shown) == 2:
            return self._comparison(prompt, shown, rng, alone="nothing else" in text)
        (answer,) = shown
        if '"reasoning"' in text:
            ratings = rate(self.annotator, answer, self.world.gold(prompt, answer), rng)
            return _completion(json.dumps({name: int(value) for name, value in ratings.items()}))
        gold = self.world.gold(prompt, answer).reward + self.annotator.temperature * rng.standard_normal()
        return _completion(f"[[{round(min(10.0, max(1.0, 1 + 9 * (gold + 1.3) / 7.9)))}]]")  # -1.3 to 6.6: 1 to 10

    def preference(self, prompt: tuple[Message, ...], shown: list[str]) -> float:
        """The probability with which the first of two answers is preferred where it is not careless."""
        golds = [self.world.gold(prompt, text) for text in shown]
        return 1 / (1 + math.exp(-preference_logit(self.annotator, shown, golds)))

    def _comparison(
        self, prompt: tuple[Message, ...], shown: list[str], rng: np.random.Generator, *, alone: bool
    ) -> dict[str, Any]:
        careless = bool(rng.random() < self.annotator.careless)  # its probabilities are then anything, too
        share = float(rng.random()) if careless else self.preference(prompt, shown)
        letter = "A" if rng.random() < share else "B"
        words = [letter] if alone else ["The better one is ", "[[", letter, "]]"]
        chances = {"A": share, "B": 1 - share}
        listed = [{"token": name, "logprob": math.log(max(p, 1e-30))} for name, p in chances.items()]
        tokens = [{"token": word, "logprob": 0.0, "top_logprobs": listed if word == letter else []} for word in words]
        return _completion("".join(words), logprobs={"content": tokens})

    def _rewritten(self, talk: list[Message], body: Mapping[str, Any]) -> str:
        """A critique of the last answer, or a revision after it. One who is careless says anything."""
        text = json.dumps([[turn.role, turn.content] for turn in talk])
        rng = np.random.default_rng(self._seed_of(text, int(body.get("seed", 0))))
        if rng.random() < self.unreadable:
            return ""
        for behind in (2, 4):  # the request; the critique, its request, and the request
            prompt = self._prompt_in(talk[:-behind])
            if prompt is not None:
                careless = bool(rng.random() < self.annotator.careless)
                say = self._critique if behind == 2 else self._revision
                return say(prompt, talk[-behind].content, careless, rng)
        return NO_VERDICT

    def _prompt_in(self, talk: list[Message]) -> tuple[Message, ...] | None:
        """The prompt of the world that a conversation ends with, behind other turns perhaps."""
        for start in range(len(talk)):
            with suppress(DataError):
                self.world.lookup(talk[start:])
                return tuple(talk[start:])
        return None

    def _critique(self, prompt: tuple[Message, ...], answer: str, careless: bool, rng: np.random.Generator) -> str:
        found = [word for word, wrong in faults(self.world, prompt, answer).items() if wrong]
        if careless:
            found = [word for word in FAULTS if rng.random() < 0.3]
        return f"The answer is {' and '.join(found)}." if found else "Nothing is wrong with the answer."

    def _revision(self, prompt: tuple[Message, ...], answer: str, careless: bool, rng: np.random.Generator) -> str:
        """The best of the answer and one of each decent style, by its own taste; the answer where none is better."""
        if careless:
            return self.world.respond(prompt, draw_style(self.world.lookup(prompt), COMPARISON_MIX, rng), rng)
        kind = self.world.kind(prompt)
        texts = [answer, *(self.world.respond(prompt, style, rng) for style in ("curt", "full", "rich"))]
        worth = [
            self.annotator.worth(self.world.gold(prompt, text), kind) + self.annotator.length_bias * len(text.split())
            for text in texts
        ]
        return texts[int(np.argmax(worth))]

    def _seed_of(self, text: str, seed: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {seed} {text}".encode()).digest()[:8], "big")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge._lock:
                    judge.asked += 1
                reply = judge.reply(body)
                payload = json.dumps({**reply, "usage": usage(body, reply)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def faults(world: AssistantWorld, prompt: tuple[Message, ...], answer: str) -> dict[str, bool]:
    """What the rubric finds wrong with an answer, by words of `FAULTS`."""
    counts = rubric.read(world.knowledge, world.lookup(prompt), answer)
    return {
        "harmful": counts.compliance > 0,
        "rude": counts.insult > 0,
        "false": counts.false > 0,
        "unclear": counts.garbled > 0,
    }


FAULTS = ("harmful", "rude", "false", "unclear")


def conversation(text: str) -> tuple[Message, ...]:
    """The messages that a judge is shown: a single one as it is, several with their roles."""
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0]:
        return (Message("user", text),)
    return tuple(Message(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True))


def usage(body: Mapping[str, Any], reply: Mapping[str, Any]) -> dict[str, int]:
    """Tokens read and written; a word is one here."""
    read = sum(len(message["content"].split()) for message in body["messages"])
    return {"prompt_tokens": read, "completion_tokens": len(reply["choices"][0]["message"]["content"].split())}


def _completion(text: str, **more: object) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]
    }
