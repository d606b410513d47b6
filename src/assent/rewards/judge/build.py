"""Judges as the options name them."""

from __future__ import annotations

import os
from dataclasses import replace

from assent.config import JudgeConfig, RemoteConfig
from assent.errors import ConfigError
from assent.names import suggestion
from assent.rewards.judge.ask import Judge
from assent.rewards.judge.claims import ClaimsJudge
from assent.rewards.judge.folder import FolderJudge, Place
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.prompt import CLAIMS, Prompt, read_prompt
from assent.rewards.judge.source import JudgeReward, check_options

KINDS = ("openai", "model")


def judge_reward(
    spec: str,
    name: str,
    judge: JudgeConfig,
    remote: RemoteConfig,
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
    spec: str, name: str, judge: JudgeConfig, remote: RemoteConfig, place: Place, flag: str
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


def _judge(
    spec: str,
    name: str,
    prompt: Prompt,
    judge: JudgeConfig,
    remote: RemoteConfig,
    place: Place,
    flag: str,
    forgiving: bool,
) -> Judge:
    kind, _, where = spec.partition("=")
    letters = prompt.letters if judge.soft else ()
    if kind == "model":
        return FolderJudge(
            name,
            where,
            place,
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
            form=prompt.form,
            letters=letters,
        )
    try:
        return OpenAIJudge(
            name,
            where,
            model=judge.model or "",
            key=_key(judge.key_env),
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
            timeout=remote.timeout,
            retries=remote.retries,
            concurrency=remote.concurrency,
            form=prompt.form,
            letters=letters,
            tie=prompt.tie,
            forgiving=forgiving,
        )
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _key(variable: str | None) -> str:
    key = "" if variable is None else os.environ.get(variable, "")
    if variable is not None and not key:
        raise ConfigError(f"--judge.key_env: the environment variable {variable} is not set, or empty.")
    return key
