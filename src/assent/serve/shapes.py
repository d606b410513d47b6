"""The request shapes of other servers: what clients of each send, and what they are answered. One table, `SHAPES`."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from assent.foreign import shown

JSON = dict[str, Any]
KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
"""What an error is called in its body, by the status."""


class Refusal(Exception):
    """A request that is not answered as it was meant to be: the HTTP status and why, in words."""

    def __init__(self, status: int, why: str, *, wait: int | None = None) -> None:
        """`wait` are the seconds after which to ask again."""
        super().__init__(why)
        self.status, self.why, self.wait = status, why, wait

    @property
    def body(self) -> bytes:
        """As OpenAI's and vLLM's servers write it."""
        kind = KINDS.get(self.status, "InternalServerError")
        return json.dumps({"error": {"message": self.why, "type": kind, "param": None, "code": self.status}}).encode()

    @property
    def headers(self) -> dict[str, str]:
        wait = {} if self.wait is None else {"retry-after": str(self.wait)}
        key = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return {"content-type": "application/json", **wait, **key}


# ---- what is to be scored


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as text with its special tokens. `adds`: the tokenizer puts before and behind it what it puts
    around every text (a BOS), where that does not stand there already. `prompt` is how it begins, where that is
    known."""

    text: str
    adds: bool = False
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Ids:
    """The same as token ids."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation as messages, the last of which is scored, with the tools and the chat template's variables."""

    messages: object
    tools: object = None
    variables: object = None


Asked = Text | Ids | Talk


@dataclass(frozen=True, slots=True)
class Answers:
    """Of S texts in the order of the request: rewards [S], the K numbers of the model's head [S, K], and how many
    tokens each text has."""

    rewards: np.ndarray
    outputs: np.ndarray
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class About:
    """The model as clients see it. `has_reward`: it is known how its outputs become one reward; `activation` is what
    vLLM does to them unless told otherwise."""

    name: str
    path: str
    outputs: Sequence[str]
    has_reward: bool
    activation: Callable[[np.ndarray], np.ndarray]
    longest: int
    started: int

    def check_name(self, name: str | None) -> None:
        """Raises Refusal for the name of another model."""
        if name and name not in (self.name, self.path):
            raise Refusal(404, f"There is no model {shown(name)} here. There is: {self.name}.")


# ---- requests


class Body(BaseModel):
    """A request: unknown fields are left out, known ones have their very type."""

    model_config = ConfigDict(extra="ignore")


class GetReward(Body):
    """OpenRLHF. `labels` are for servers that compare with them."""

    query: StrictStr | list[StrictStr]
    prompts: StrictStr | list[StrictStr] | None = None


class ScoreEvaluation(Body):
    """LLaMA-Factory."""

    model: StrictStr | None = None
    messages: list[StrictStr]
    max_length: StrictInt | None = None


class Pooling(Body):
    """vLLM: either `input` or `messages`."""

    model: StrictStr | None = None
    input: Any = None
    messages: Any = None
    add_special_tokens: StrictBool | None = None
    use_activation: StrictBool | None = None
    task: StrictStr | None = None
    encoding_format: StrictStr = "float"
    tools: Any = None
    chat_template: StrictStr | None = None
    chat_template_kwargs: Any = None
    add_generation_prompt: StrictBool = False
    continue_final_message: StrictBool = False
    truncate_prompt_tokens: StrictInt | None = None
    dimensions: StrictInt | None = None


class Embeddings(Body):
    """SGLang (started with --is-embedding)."""

    model: StrictStr | None = None
    input: Any
    encoding_format: StrictStr = "float"
    dimensions: StrictInt | None = None


# ---- from requests to what is scored


def _get_reward(request: GetReward) -> list[Asked]:
    texts = [request.query] if isinstance(request.query, str) else request.query
    prompts: Sequence[str | None] = [None] * len(texts)
    if request.prompts is not None:
        prompts = [request.prompts] if isinstance(request.prompts, str) else request.prompts
        if len(prompts) != len(texts):
            raise Refusal(400, f"query has {len(texts)} texts and prompts has {len(prompts)}; expected as many.")
    return [Text(text, prompt=prompt) for text, prompt in zip(texts, prompts, strict=True)]


def _score_evaluation(request: ScoreEvaluation) -> list[Asked]:
    return [Text(text) for text in request.messages]


def _pooling(request: Pooling) -> list[Asked]:
    for name in ("truncate_prompt_tokens", "dimensions", "chat_template"):
        if getattr(request, name) is not None:
            raise Refusal(400, f"{name} is not offered: a text is scored as a whole, by the model's own template.")
    if (request.input is None) == (request.messages is None):
        raise Refusal(400, "Expected either input or messages.")
    if request.messages is None:
        return inputs(request.input, adds=request.add_special_tokens is not False)
    for name in ("add_generation_prompt", "continue_final_message", "add_special_tokens"):
        if getattr(request, name):
            raise Refusal(400, f"{name} is not offered with messages: the last one is scored up to its end.")
    return [Talk(request.messages, request.tools, request.chat_template_kwargs)]


def _embeddings(request: Embeddings) -> list[Asked]:
    if request.dimensions is not None:
        raise Refusal(400, "dimensions is not offered: the answer is the reward.")
    return inputs(request.input, adds=True)


def inputs(value: object, *, adds: bool) -> list[Asked]:
    """A text, texts, token ids, or lists of token ids. Raises Refusal for anything else."""
    if isinstance(value, str):
        return [Text(value, adds)]
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):
            return [Text(one, adds) for one in value]
        if all(type(one) is int for one in value):
            return [Ids(value)]
        if all(isinstance(one, list) and one and all(type(token) is int for token in one) for one in value):
            return [Ids(one) for one in value]
    raise Refusal(
        400, f"input: expected a text, texts, token ids, or lists of token ids, none of them empty. Got {shown(value)}."
    )


# ---- answers


def _rewards(request: GetReward, got: Answers, about: About) -> JSON:
    rewards = got.rewards.tolist()
    named = zip(about.outputs, got.outputs.T.tolist(), strict=True) if len(about.outputs) > 1 else ()
    return {"rewards": rewards, "scores": rewards, "extra_logs": dict(named)}


def _scores(request: ScoreEvaluation, got: Answers, about: About) -> JSON:
    return {
        "id": _new_id("scoreeval"),
        "object": "score.evaluation",
        "model": request.model or about.name,
        "scores": got.rewards.tolist(),
    }


def _classes(request: Pooling, got: Answers, about: About) -> JSON:
    data = [
        {"index": index, "label": about.outputs[int(np.argmax(row))], "probs": row.tolist(), "num_classes": len(row)}
        for index, row in enumerate(_activated(request, got, about))
    ]
    return _listed("classify", data, got, about)


def _pooled(request: Pooling, got: Answers, about: About) -> JSON:
    data = [
        {"index": index, "object": "pooling", "data": encoded(row, request.encoding_format)}
        for index, row in enumerate(_activated(request, got, about))
    ]
    return _listed("pool", data, got, about)


def _embedded(request: Embeddings, got: Answers, about: About) -> JSON:
    data = [
        {"object": "embedding", "embedding": encoded(row[None], request.encoding_format), "index": index}
        for index, row in enumerate(got.rewards)
    ]
    usage = _usage(got)
    return {"object": "list", "data": data, "model": about.name, "usage": usage}


def _activated(request: Pooling, got: Answers, about: About) -> np.ndarray:
    return got.outputs if request.use_activation is False else about.activation(got.outputs)


def _listed(kind: str, data: list[JSON], got: Answers, about: About) -> JSON:
    return {
        "id": _new_id(kind),
        "object": "list",
        "created": int(time.time()),
        "model": about.name,
        "data": data,
        "usage": _usage(got),
    }


def _usage(got: Answers) -> JSON:
    total = sum(got.tokens)
    return {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0, "prompt_tokens_details": None}


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def encoded(numbers: np.ndarray, encoding: str) -> list[float] | str:
    """As numbers, or as the base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return numbers.tolist()


# ---- vLLM's activations

REGRESSION = "regression"


def activation_of(problem_type: str | None, outputs: int) -> Callable[[np.ndarray], np.ndarray]:
    """What vLLM makes of the numbers of a head with that many outputs, by the `problem_type` in config.json: nothing
    for a regression, else a sigmoid of one number or of independent labels, and a softmax of several."""
    if problem_type == REGRESSION:
        return lambda numbers: numbers
    if problem_type == "multi_label_classification" or outputs < 2:
        return _sigmoid
    return _softmax


def _sigmoid(numbers: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -numbers))


def _softmax(numbers: np.ndarray) -> np.ndarray:
    raised = np.exp(numbers - numbers.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


# ---- the table


@dataclass(frozen=True, slots=True)
class Shape:
    """One path: who asks it, what is read of a request, and what is answered. With `outputs`, all of the model's are,
    else its reward; `named`: the model's name must be right, as there."""

    path: str
    whose: str
    request: type[Body]
    asked: Callable[[Any], list[Asked]]
    answer: Callable[[Any, Answers, About], JSON]
    outputs: bool = False
    named: bool = False


SHAPES: tuple[Shape, ...] = (
    Shape("/get_reward", "OpenRLHF", GetReward, _get_reward, _rewards),
    Shape("/v1/score/evaluation", "LLaMA-Factory", ScoreEvaluation, _score_evaluation, _scores),
    Shape("/classify", "vLLM", Pooling, _pooling, _classes, outputs=True, named=True),
    Shape("/pooling", "vLLM", Pooling, _pooling, _pooled, outputs=True, named=True),
    Shape("/v1/embeddings", "SGLang", Embeddings, _embeddings, _embedded),
)
TASK = "classify"
NO_SCORE = (
    "The model does not support Score API: that puts two texts together for cross-encoders, and this is a reward model "
    "of conversations. Ask /classify with their text, token ids or messages."
)
REFUSED = dict.fromkeys(("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"), NO_SCORE)
"""What vLLM has for other models, and why it is not answered here."""


def read(shape: Shape, body: Mapping[str, Any], about: About) -> tuple[Any, list[Asked]]:
    """A request and what is to be scored. Raises Refusal, or pydantic's ValidationError."""
    request = shape.request.model_validate(body)
    if not (shape.outputs or about.has_reward):
        raise Refusal(
            400,
            f"The model has {len(about.outputs)} outputs, and its config.json does not say how they become one reward. "
            "Start the server with --weights, or ask /classify for all of them.",
        )
    if shape.named:
        about.check_name(request.model)  # type: ignore[attr-defined]
    task = getattr(request, "task", None)
    if task not in (None, TASK):
        raise Refusal(400, f"Unsupported task: {shown(task)}. Supported tasks: '{TASK}'.")
    if (encoding := getattr(request, "encoding_format", "float")) not in ("float", "base64"):
        raise Refusal(400, f"encoding_format: expected float or base64. Got {shown(encoding)}.")
    return request, shape.asked(request)
