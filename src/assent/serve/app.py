"""The HTTP application: the paths, how a body is read, and how long a client is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictBool, StrictStr, ValidationError

from assent import __version__
from assent.config import LimitsConfig
from assent.data.records import too_deep
from assent.foreign import brief, named
from assent.serve.gate import Gate
from assent.serve.metrics import Metrics
from assent.serve.queue import Queue
from assent.serve.scorer import Reader
from assent.serve.shapes import REFUSED, SHAPES, About, Refusal, Shape, Talk, read

T = TypeVar("T")

BODY_SECONDS = 30.0
"""In which a request must have come whole."""
BODIES = 16
"""Times `limits.bytes` that may be held at once."""
GONE = 499
"""The status, in the counters, of a request whose client left."""


class Tokenize(BaseModel):
    """vLLM's /tokenize."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Any = None
    add_special_tokens: StrictBool | None = None
    add_generation_prompt: StrictBool = True
    tools: Any = None
    chat_template_kwargs: Any = None


class Left(Exception):
    """The client went away before it was answered."""


class Service:
    """One reward model as an application. `app` is ASGI."""

    def __init__(
        self, about: About, reader: Reader, queue: Queue, limits: LimitsConfig, *, key: str = "", log_every: int = 0
    ) -> None:
        self.about, self.reader, self.queue, self.limits = about, reader, queue, limits
        self.metrics = Metrics(queue, log_every)
        self._reading = ThreadPoolExecutor(1, "reading")  # tokenizers and templates are for one thread
        self._held = 0
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        paths = self._add_paths(api)
        for status in (404, 405):
            api.add_exception_handler(status, partial(_no_path, paths))
        api.add_exception_handler(Refusal, _refusal)
        api.add_exception_handler(Exception, _failure)
        self.app = Gate(api, key=key, rate=limits.rate, metrics=self.metrics, paths=paths)

    def close(self) -> None:
        """Ends the threads; no request may be under way."""
        self._reading.shutdown()
        self.queue.end(5.0)

    # ---- paths

    def _add_paths(self, api: FastAPI) -> list[str]:
        gets: dict[str, Callable[[], Response]] = {
            "/health": self._health,
            "/version": lambda: JSONResponse({"version": __version__}),
            "/v1/models": self._models,
            "/metrics": lambda: Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"),
        }
        posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            **{shape.path: partial(self._score, shape) for shape in SHAPES},
            **{path: partial(_refused, why) for path, why in REFUSED.items()},
            "/tokenize": self._tokenize,
        }
        for path, get in gets.items():
            api.add_api_route(path, _without_request(get), methods=["GET"], response_model=None)
        for path, post in posts.items():
            api.add_api_route(path, _with_request(post), methods=["POST"], response_model=None)
        return [*gets, *posts]

    def _health(self) -> Response:
        if self.queue.closing:
            raise Refusal(503, "The server is stopping.", wait=1)
        return JSONResponse({"status": "ok"})

    def _models(self) -> Response:
        about = self.about
        card = {"id": about.name, "object": "model", "created": about.started, "owned_by": "assent"}
        card |= {"root": about.path, "parent": None, "max_model_len": about.longest, "permission": []}
        return JSONResponse({"object": "list", "data": [card]})

    async def _tokenize(self, request: Request) -> Response:
        with self.queue.place(), self._body(request) as body:
            asked = Tokenize.model_validate(await body)
            self.about.check_name(asked.model)
            if (asked.prompt is None) == (asked.messages is None):
                raise Refusal(400, "Expected either prompt or messages.")
            if asked.prompt is not None:
                ids = partial(self.reader.text_ids, asked.prompt, adds=asked.add_special_tokens is not False)
            else:
                talk = Talk(asked.messages, asked.tools, asked.chat_template_kwargs)
                ids = partial(self.reader.talk_ids, talk, generation_prompt=asked.add_generation_prompt)
            found = (await self._in_reader(ids)).tolist()
        longest = self.about.longest
        return JSONResponse({"count": len(found), "max_model_len": longest, "tokens": found, "token_strs": None})

    async def _score(self, shape: Shape, request: Request) -> Response:
        with self.queue.place():
            with self._body(request) as body:
                asked, texts = read(shape, await body, self.about)
                if len(texts) > self.limits.texts:
                    raise Refusal(400, f"{len(texts):,} texts; one request may have {self.limits.texts:,}.")
                if not texts:
                    raise Refusal(400, "There is no text to score.")
                work = await self._in_reader(self.reader.work, texts, getattr(asked, "max_length", None))
            answers = await unless_left(request, self.queue.answers(work))
        _check(answers.outputs if shape.outputs else answers.rewards[:, None])
        self.metrics.scored(shape.path, len(texts), sum(work.tokens))
        return JSONResponse(shape.answer(asked, answers, self.about))

    async def _in_reader(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, work, *arguments)

    @contextmanager
    def _body(self, request: Request) -> Iterator[Coroutine[Any, Any, Mapping[str, Any]]]:
        """The JSON object of a request, to be awaited; its size counts as held inside. Raises Refusal beyond the
        limits."""
        held = 0
        said = request.headers.get("content-length", "")
        if said.isdecimal() and (len(said) > 15 or int(said) > self.limits.bytes):
            raise Refusal(413, f"The request has {brief(said, 20)} bytes; one may have {self.limits.bytes:,}.")

        def hold(size: int) -> None:
            nonlocal held
            if held + size > self.limits.bytes:
                raise Refusal(413, f"The request is larger than {self.limits.bytes:,} bytes.")
            if self._held + size > BODIES * self.limits.bytes:
                raise Refusal(503, "Too much is being read at the same time.", wait=self.queue.wait())
            held += size
            self._held += size

        body = _body(request, hold)
        try:
            yield body
        finally:
            body.close()
            self._held -= held


# ---- reading


async def _body(request: Request, hold: Callable[[int], None]) -> Mapping[str, Any]:
    """The JSON object of a request; `hold` is asked for each piece of it. Raises Refusal."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Send the header Content-Type: application/json, and JSON.")
    pieces: list[bytes] = []
    more = True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Left
                piece, more = message.get("body", b""), message.get("more_body", False)
                hold(len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise Refusal(408, f"The request had not come whole after {BODY_SECONDS:.0f} s.") from None
    return parsed(b"".join(pieces))


def parsed(text: bytes) -> Mapping[str, Any]:
    """A JSON object. Raises Refusal for anything else, also for NaN, which is no JSON."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "The request is nested too deeply.") from None
    except ValueError as error:
        raise Refusal(400, f"The request is no JSON: {brief(error)}.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The request is no JSON object, {...}.")
    if too_deep(value):
        raise Refusal(400, "The request is nested too deeply.")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def in_words(error: ValidationError) -> str:
    """What pydantic has against a request."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}."


# ---- answering


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives. Where the client goes away meanwhile, it is cancelled, and Left is raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check(numbers: np.ndarray) -> None:
    """[S, K]. Raises Refusal where a text has no number: one that is unscored is no 0."""
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        first = int(np.flatnonzero(wrong.any(-1))[0])
        number, count = numbers[first][wrong[first]][0], int(wrong.any(-1).sum())
        raise Refusal(500, f"The model gives {number} for text {first + 1}: {count} texts have no reward.")


def _without_request(get: Callable[[], Response]) -> Callable[[], Awaitable[Response]]:
    async def route() -> Response:
        return get()

    return route


def _with_request(post: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        try:
            return await post(request)
        except ValidationError as error:
            raise Refusal(400, in_words(error)) from None
        except Left:
            return Response(status_code=GONE)

    return route


async def _refused(why: str, request: Request) -> Response:
    raise Refusal(400, why)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Response(error.body, error.status, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return await _refusal(request, Refusal(500, f"The server failed on this request: {named(error)}."))


async def _no_path(paths: list[str], request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    why = f"{request.method} {brief(request.url.path, 80)} is not answered here. There is: {', '.join(paths)}."
    return await _refusal(request, Refusal(status, why))
