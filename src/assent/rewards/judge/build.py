"""Judges as the options name them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

from assent.config import JudgeConfig
from assent.config.judge import WriterConfig
from assent.config.online import PatienceConfig
from assent.errors import ConfigError
from assent.names import suggestion
from assent.rewards.judge.ask import Judge
from assent.rewards.judge.claims import ClaimsJudge
from assent.rewards.judge.folder import FolderJudge, Place
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.prompt import CLAIMS, Form, Prompt, read_prompt
from assent.rewards.judge.source import JudgeReward, check_options

KINDS = ("openai", "model")
OWN = ("messages", "stream", "n", "seed")
"""Fields of a request that --judge.body cannot set."""


def judge_reward(
    spec: str,
    name: str,
    judge: JudgeConfig,
    remote: PatienceConfig,
    place: Place,
    flag: str = "--rewards.judges",
    forgiving: bool = False,
) -> JudgeReward:
    """The judge of openai=URL or model=FOLDER as a source called `name`. Where `forgiving`, what a server does not
    answer is counted and raises nothing. Raises ConfigError, before a model is loaded, for what is no judge or no
    prompt, and ModelError for a folder that cannot be one."""
    _check_spec(spec, flag)
    prompt = read_prompt(judge.prompt)
    check_options(prompt, judge)
    return JudgeReward(
        name, prompt, _judge(spec, name, prompt, judge, remote, place, flag, forgiving), judge, remote.budget
    )


def claims_judge(
    spec: str, name: str, judge: JudgeConfig, remote: PatienceConfig, place: Place, flag: str
) -> ClaimsJudge:
    """The same judge, forgiving, asked for claims, whatever `judge.prompt` is. Raises as `judge_reward`."""
    _check_spec(spec, flag)
    asked = replace(judge, soft=False)
    made = _judge(spec, name, read_prompt(CLAIMS), asked, remote, place, flag, True)
    return ClaimsJudge(name, made, asked, remote.budget)


def _check_spec(spec: str, flag: str) -> None:
    kind, given, where = spec.partition("=")
    if not given or not where:  # the text is not shown: it may hold a password
        raise ConfigError(f"{flag}: expected openai=URL or model=FOLDER, for example openai=http://localhost:8000.")
    if kind not in KINDS:
        raise ConfigError(f"{flag}: there is no kind of judge '{kind}'.{suggestion(kind, KINDS)} Known: openai, model.")


def writer(spec: str, name: str, asked: WriterConfig, remote: PatienceConfig, place: Place, flag: str) -> Judge:
    """The same language model, forgiving, for whatever it is asked to write. Raises as `judge_reward`."""
    _check_spec(spec, flag)
    return _made(spec, name, asked, remote, place, flag, True, Form(), (), None)


def _judge(
    spec: str,
    name: str,
    prompt: Prompt,
    judge: JudgeConfig,
    remote: PatienceConfig,
    place: Place,
    flag: str,
    forgiving: bool,
) -> Judge:
    letters = prompt.letters if judge.soft else ()
    return _made(spec, name, judge, remote, place, flag, forgiving, prompt.form, letters, prompt.tie)


def _made(
    spec: str,
    name: str,
    judge: WriterConfig,
    remote: PatienceConfig,
    place: Place,
    flag: str,
    forgiving: bool,
    form: Form,
    letters: tuple[str, ...],
    tie: str | None,
) -> Judge:
    kind, _, where = spec.partition("=")
    if kind == "model":
        return FolderJudge(
            name,
            where,
            place,
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
            form=form,
            letters=letters,
        )
    try:
        return OpenAIJudge(
            name,
            where,
            model=judge.model or "",
            key=_key(judge.key_env),
            body=_body(judge.body),
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
            timeout=remote.timeout,
            retries=remote.retries,
            concurrency=remote.concurrency,
            form=form,
            letters=letters,
            tie=tie,
            forgiving=forgiving,
        )
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _body(fields: Mapping[str, str]) -> dict[str, object]:
    """Further fields of a request: JSON, or else text."""
    for name in fields:
        if name in OWN:
            raise ConfigError(f"--judge.body {name}: it is set by what is asked. Leave it out.")
    return {name: _json(value) for name, value in fields.items()}


def _json(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> object:
    raise ValueError(constant)  # NaN and its kin are no JSON


def _key(variable: str | None) -> str:
    key = "" if variable is None else os.environ.get(variable, "")
    if variable is not None and not key:
        raise ConfigError(f"--judge.key_env: the environment variable {variable} is not set, or empty.")
    return key
