"""Judges on a server that speaks OpenAI's /v1/chat/completions."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from assent.errors import UserError
from assent.http import Client, Patience, ServerAnswerError, ServerError, run, together
from assent.rewards.judge import parse
from assent.rewards.judge.ask import STOPPED, Answer, Keep, Question, Spent, Unanswered, as_chat, known
from assent.rewards.judge.prompt import Form

PATH = "/v1/chat/completions"
GIVEN_UP = 8
"""Questions in a row without an answer after which a server is asked no more."""
REFUSALS = ("answered 400", "answered 413", "answered 422")
"""What a server says that cannot read this question, such as one too long for it: it would say so again."""
NO_LOGPROBS = (
    "gave no log-probabilities, which --judge.soft needs: its answer has no logprobs.content. Ask a server and a model "
    "that give them, or take the letter that is written, without --judge.soft."
)
LISTED = 20
"""Alternatives of a token that are asked for: the most that servers give."""


class OpenAIJudge:
    """A server. `letters` are those whose probabilities are wanted; none: what is written counts.

    Where `forgiving`, a question that it does not answer is `Unanswered`, counted in `unanswered`, and nothing is
    raised; `said` is the last error in full. Each question then has the whole budget, and after `GIVEN_UP` of them in a
    row the server is asked no more."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        model: str = "",
        key: str = "",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        timeout: float = 60.0,
        retries: int = 10,
        concurrency: int = 4,
        pause: float = 1.0,
        form: Form | None = None,
        letters: Sequence[str] = (),
        tie: str | None = None,
        body: Mapping[str, object] | None = None,
        forgiving: bool = False,
    ) -> None:
        """`body` are further fields of each request, None for one that is not sent. Raises ConfigError for what is no
        URL of a server."""
        self._client = Client(f"{name}: the judge", url, key)
        self._path = path_of(self._client.base)
        self.who = f"{self._client.who}{self._path}"
        options: dict[str, object] = {"temperature": temperature, "max_tokens": max_tokens, "model": model or None}
        if letters:
            options |= {"logprobs": True, "top_logprobs": LISTED}
        options |= body or {}
        self._options = {field: value for field, value in options.items() if value is not None}
        self._draws = temperature > 0
        self._timeout, self._retries, self._pause, self._concurrency = timeout, retries, pause, concurrency
        self._form, self._letters, self._tie = form or Form(), tuple(letters), tie
        self.forgiving, self.unanswered, self.said = forgiving, Counter[str](), ""
        self._in_a_row, self._lists = 0, False
        self.spent = Spent()

    @property
    def identity(self) -> Mapping[str, object]:
        return {"server": self.who.partition(": the judge ")[2], **self._options}

    def ask(self, questions: Sequence[Question], keep: Keep, deadline: float) -> list[Answer | str]:
        """As `Judge.ask`. Raises ServerUnavailable when the deadline or the retries are spent, ServerAnswerError for an
        answer that is no chat completion."""
        begun = time.monotonic()
        try:
            return self._asked(questions, keep, deadline)
        finally:
            self.spent.seconds += time.monotonic() - begun

    def _asked(self, questions: Sequence[Question], keep: Keep, deadline: float) -> list[Answer | str]:
        if self.forgiving:
            budget = deadline - time.monotonic()
            kinds = [
                partial(self._forgiven, number, question, keep, budget) for number, question in enumerate(questions)
            ]
            return run(together(kinds, self._concurrency))
        patience = Patience(self._timeout, deadline, self._retries, self._pause)
        asks = [partial(self._ask, number, question, keep, patience) for number, question in enumerate(questions)]
        return run(together(asks, self._concurrency))

    async def _forgiven(self, number: int, question: Question, keep: Keep, budget: float) -> Answer | str:
        if self._in_a_row >= GIVEN_UP:
            return self._lost(f"not asked: {GIVEN_UP} questions in a row had no answer")
        patience = Patience(self._timeout, time.monotonic() + budget, self._retries, self._pause)
        try:
            answer = await self._ask(number, question, keep, patience)
        except ServerError as error:
            self.said, self._in_a_row = str(error), 0 if error.why in REFUSALS else self._in_a_row + 1
            return self._lost(f"the server {error.why}")
        self._in_a_row = 0
        return answer

    def _lost(self, why: str) -> Unanswered:
        self.unanswered[why] += 1
        return Unanswered(why)

    async def _ask(self, number: int, question: Question, keep: Keep, patience: Patience) -> Answer:
        body: dict[str, object] = {**self._options, "messages": as_chat(question.messages)}
        if self._draws:
            body["seed"] = question.seed
        self.spent.requests += 1
        answer = await self._client.ask(
            self._path,
            body,
            self._read,
            patience,
            expected='{"choices": [{"message": {"content": text}, "finish_reason": word}]}',
            failed="gave no verdict",
            advice="Check that it runs and can keep up, or allow more --remote.retries and a larger --remote.budget.",
        )
        keep(number, answer)
        return answer

    def _read(self, reply: Any) -> Answer:
        (choice,) = reply["choices"]
        text, ended = _said(choice["message"].get("content")), choice["finish_reason"]
        if not isinstance(text, str | None) or not isinstance(ended, str):
            raise TypeError
        chances = None
        if self._letters:
            tokens = (choice.get("logprobs") or {}).get("content") or []
            self._lists |= bool(tokens)
            if not self._lists and text and ended == STOPPED:  # not kept: another time it may
                raise ServerAnswerError(f"{self.who} {NO_LOGPROBS}", "gave no log-probabilities")
            chances = letter_chances(tokens, text or "", self._form, self._letters, self._tie)
        self._count(reply.get("usage"))
        return Answer(text or "", ended, chances)

    def _count(self, usage: Any) -> None:
        """Tokens, where the server says how many."""
        told = usage if isinstance(usage, dict) else {}
        read, written = told.get("prompt_tokens"), told.get("completion_tokens")
        if isinstance(read, int) and isinstance(written, int):
            self.spent.read += read
            self.spent.written += written
        else:
            self.spent.untold += 1


def path_of(base: str) -> str:
    """The path that is asked, by that of the address: with /chat/completions it is whole, without it may end in /v1."""
    return base if base.endswith("/chat/completions") else base.removesuffix("/v1") + PATH


def _said(content: Any) -> Any:
    """The text of a message, also where it comes in parts, of which thoughts are none of it."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def tried(flag: str, judge: OpenAIJudge, ask: Callable[[], object]) -> None:
    """Asks a forgiving judge something, before work is spent on what it will be asked. Raises UserError, which begins
    with `flag`, where its server gives no answer."""
    ask()
    if judge.said:
        raise UserError(f"{flag}: {judge.said.partition(': ')[2]}")  # without the judge's name


def letter_chances(
    tokens: Sequence[Any], text: str, form: Form, letters: Sequence[str], tie: str | None
) -> dict[str, float]:
    """The log-probabilities of the letters at the place of the last verdict, from a completion's `logprobs.content` and
    its text; some servers (vLLM) list the token that ended it as well, which is no text. Empty where it has no verdict,
    or where its letter is not a token by itself: what else could stand there is then not known."""
    words = [str(token["token"]) for token in tokens]
    number, written = _place(words, parse.spoken(text), form, [*letters, *([tie] if tie else [])])
    if number < 0 or words[number].strip() != written:
        return {}
    likeliest: dict[str, float] = {}
    for other in tokens[number].get("top_logprobs") or []:  # tokens may read alike: a letter, and its byte
        chance, reads = float(other["logprob"]), str(other["token"])
        likeliest[reads] = max(chance, likeliest.get(reads, -math.inf))
    return known(likeliest, {letter: words[number].replace(written, letter) for letter in letters})


def _place(words: Sequence[str], said: str, form: Form, letters: Sequence[str]) -> tuple[int, str]:
    """Which token has the letter of the last verdict, and the letter; -1 where there is none. Servers may list the
    tokens of thoughts as well."""
    joined, starts = "".join(words), [0, *accumulate(map(len, words))]
    if not form.before:  # it is all that was said
        begins = len(joined) - len(parse.spoken(joined))
        places = (number for number, word in enumerate(words) if starts[number] >= begins and word.strip())
        return (next(places, -1), said.strip()) if said.strip() in letters else (-1, "")
    found = {letter: joined.rfind(form.written(letter)) for letter in letters}
    letter, place = max(found.items(), key=lambda item: item[1])
    begins = place + len(form.before)
    number = max((index for index, start in enumerate(starts[:-1]) if start <= begins), default=-1)
    return (number if place >= 0 else -1), letter
