"""Judges as the options name them."""

from __future__ import annotations

import os

from assent.config import JudgeConfig, RemoteConfig
from assent.errors import ConfigError
from assent.names import suggestion
from assent.rewards.judge.ask import Judge
from assent.rewards.judge.folder import FolderJudge, Place
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.judge.source import JudgeReward, check_options

KINDS = ("openai", "model")


def judge_reward(
    spec: str, name: str, judge: JudgeConfig, remote: RemoteConfig, place: Place, flag: str = "--rewards.judges"
) -> JudgeReward:
    """The judge of openai=URL or model=FOLDER as a source called `name`. Raises ConfigError, before a model is loaded,
    for what is no judge or no prompt, and ModelError for a folder that cannot be one."""
    kind, given, where = spec.partition("=")
    if not given or not where:  # the text is not shown: it may hold a password
        raise ConfigError(f"{flag}: expected openai=URL or model=FOLDER, for example openai=http://localhost:8000.")
    if kind not in KINDS:
        raise ConfigError(f"{flag}: there is no kind of judge '{kind}'.{suggestion(kind, KINDS)} Known: openai, model.")
    prompt = read_prompt(judge.prompt)
    check_options(prompt, judge)
    letters = prompt.letters if judge.soft else ()
    made: Judge
    if kind == "openai":
        try:
            made = OpenAIJudge(
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
            )
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from None
    else:
        made = FolderJudge(
            name,
            where,
            place,
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
            form=prompt.form,
            letters=letters,
        )
    return JudgeReward(name, prompt, made, judge, remote.budget)


def _key(variable: str | None) -> str:
    key = "" if variable is None else os.environ.get(variable, "")
    if variable is not None and not key:
        raise ConfigError(f"--judge.key_env: the environment variable {variable} is not set, or empty.")
    return key
