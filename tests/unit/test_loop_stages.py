"""The stages that loops share: answers are sampled and scored in parts, a kill loses one of them at most, and what a
server did not answer is asked again alone."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from assent.config import EngineConfig, ModelConfig, RemoteConfig, SamplingConfig, ScoreConfig, SourceConfig
from assent.config.choosing import ChooseConfig
from assent.config.loops import LoopConfig
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.errors import DataError, Incomplete
from assent.evaluate.score import score
from assent.loops.chosen import choose_from
from assent.loops.labelled import label
from assent.loops.loop import opened
from assent.loops.parts import Parts
from assent.loops.sampled import sample
from assent.models.loading import load_tokenizer
from assent.rewards.group import RewardError
from tests.fault.servers import FakeServer


class Killed(BaseException):
    """What ends the process, here."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": f"Name {n} colours.", "answer": str(n)} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(out: Path, model: Path, prompts: Path) -> LoopConfig:
    return LoopConfig(
        model={"path": str(model), "precision": "fp32"}, data={"train": str(prompts)}, out=str(out), resume="auto"
    )


def answer(loop, model: Path, prompts: Path, **options) -> Path:
    given = {"model": ModelConfig(str(model), precision="fp32"), "answers": 3, "seed": 5} | options
    sampling = SamplingConfig(max_new_tokens=6, max_batch=2)
    return sample(loop, "answers.jsonl", prompts=prompts, sampling=sampling, engine=EngineConfig(), **given)


@contextmanager
def killed_after(monkeypatch, parts: int):
    """Ends the process once so many parts are there."""
    put, count = Parts.put, 0

    def counted(self, *arguments):
        nonlocal count
        if count == parts:
            raise Killed
        count += 1
        put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "put", counted)
        with pytest.raises(Killed):
            yield


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, tiny_model_dir: Path, prompts: Path) -> Path:
    with opened("test", config_of(tmp_path_factory.mktemp("loop") / "out", tiny_model_dir, prompts)) as loop:
        path = answer(loop, tiny_model_dir, prompts)
        numbers = loop.numbers("answers.jsonl")
    rows = load_examples(path).examples
    assert len(rows) == numbers["prompts"] == 12 and numbers["unasked"] == 0
    assert sum(len(row.responses) for row in rows) == numbers["answers"] == 36 - numbers["empty"]
    return path


def test_answers_have_their_tokens_and_their_prompts_columns(sampled: Path, tiny_model_dir: Path):
    chat = Chat(load_tokenizer(ModelConfig(str(tiny_model_dir))))
    for number, row in enumerate(load_examples(sampled).examples):
        assert row.meta["answer"] == str(number) and {response.source for response in row.responses} <= {"policy"}
        assert row.meta["finished"] == [response.finished for response in row.responses]
        assert all(size <= 6 for size in row.meta["tokens"])
        assert len(row.meta["tokens"]) == len(row.responses)
        if row.responses and not row.responses[0].finished:
            last = chat.tree(row, 500).branches[0].ids[-1]
            assert int(last) not in chat.eos_ids


def test_a_kill_while_sampling_loses_one_part(sampled, tiny_model_dir, prompts, tmp_path, monkeypatch):
    config = config_of(tmp_path / "out", tiny_model_dir, prompts)
    for parts in (2, 1):
        with killed_after(monkeypatch, parts), opened("test", config) as loop:
            answer(loop, tiny_model_dir, prompts)
    left = sorted(file.name for file in (tmp_path / "out" / "answers.jsonl.parts").glob("0*"))
    assert left == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    with opened("test", config) as loop:
        path = answer(loop, tiny_model_dir, prompts)
    assert path.read_bytes() == sampled.read_bytes()
    assert (path.parent / "loop.jsonl").read_text() == (sampled.parent / "loop.jsonl").read_text()
    assert sorted(file.name for file in path.parent.iterdir() if "parts" in file.name) == []


def test_parts_of_another_sampling_are_not_used(sampled, tiny_model_dir, prompts, tmp_path, monkeypatch):
    config = config_of(tmp_path / "out", tiny_model_dir, prompts)
    with killed_after(monkeypatch, 3), opened("test", config) as loop:
        answer(loop, tiny_model_dir, prompts, seed=6)
    with opened("test", config) as loop:
        assert answer(loop, tiny_model_dir, prompts).read_bytes() == sampled.read_bytes()


def test_rewards_are_those_of_assent_score(sampled, scorer_dir, tiny_model_dir, prompts, tmp_path):
    with opened("test", config_of(tmp_path / "out", tiny_model_dir, prompts)) as loop:
        source = SourceConfig((str(scorer_dir),), precision="fp32")
        found = load_examples(label(loop, "labelled.jsonl", sampled, source)).examples
        numbers = loop.numbers("labelled.jsonl")
    score(ScoreConfig((str(scorer_dir),), str(sampled), precision="fp32", out=str(tmp_path / "scores.jsonl")))
    scores = [json.loads(line)["reward"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    rewards = [rating.scores["reward"] for row in found for rating in row.feedback]
    assert rewards == pytest.approx(scores, abs=1e-6) and len({*rewards}) > 5
    assert numbers["reward"] == pytest.approx(np.mean(scores)) and numbers["unscored"] == 0
    assert {rating.annotator for row in found for rating in row.feedback} == {"scorer"}


def test_answers_without_a_reward_have_no_rating(sampled, tiny_model_dir, prompts, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def even(prompts, completions, answer, **columns):\n"
        "    return [1.0 if int(n) % 2 == 0 else None for n in answer]\n\n"
        "def none(prompts, completions, **columns):\n    return [None] * len(prompts)\n"
    )
    with opened("test", config_of(tmp_path / "out", tiny_model_dir, prompts)) as loop:
        found = load_examples(label(loop, "labelled.jsonl", sampled, SourceConfig((f"{file}:even",)))).examples
        counts = [(len(row.responses), len(row.feedback)) for row in found]
        assert all(rated == (answers if number % 2 == 0 else 0) for number, (answers, rated) in enumerate(counts))
        assert loop.numbers("labelled.jsonl")["unscored"] == sum(answers for answers, _ in counts[1::2])
        with pytest.raises(RewardError, match="not one of .* answers could be scored"):
            label(loop, "nothing.jsonl", sampled, SourceConfig((f"{file}:none",)))
        # all rewards are equal: nothing to choose, and the reason is said
        with pytest.raises(DataError, match="no prompt gives a pair.*rewards are equal.*prefers none of the answers"):
            choose_from(loop, "pairs.jsonl", tmp_path / "out" / "labelled.jsonl",
                        ChooseConfig(fewer="use", unfinished="keep"), answers=3)  # fmt: skip
    assert not (tmp_path / "out" / "pairs.jsonl").exists()


class Judge(FakeServer):
    """Prefers the longer answer; answers `left` questions, and is then out of order."""

    def __init__(self, left: int) -> None:
        self.left, self.asked = left, []
        super().__init__()

    def respond(self, handler) -> None:
        with self.lock:
            self.left -= 1
            if self.left < 0:
                handler.say("out of order", 503)
                return
            text = handler.body["messages"][-1]["content"]
            self.asked.append(text)
        content = f"[[{len(text) % 10 + 1}]]"
        handler.say({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})


def judging(url: str, folder: Path) -> SourceConfig:
    return SourceConfig(
        (f"openai={url}",),
        judge={"prompt": "rating", "cache": str(folder)},
        remote=RemoteConfig(retries=0, concurrency=1, budget=5.0),
    )


def test_a_judge_that_goes_away_is_asked_only_what_is_missing(sampled, tiny_model_dir, prompts, tmp_path):
    config = config_of(tmp_path / "out", tiny_model_dir, prompts)
    judge = Judge(10)
    try:
        with pytest.raises(Incomplete, match="--resume auto asks for the missing ones alone") as caught:
            with opened("test", config) as loop:
                label(loop, "labelled.jsonl", sampled, judging(judge.url, tmp_path / "cache"))
        assert caught.value.exit_code == 4 and not (tmp_path / "out" / "labelled.jsonl").exists()
        judge.left = 1000
        with opened("test", config) as loop:
            path = label(loop, "labelled.jsonl", sampled, judging(judge.url, tmp_path / "cache"))
        assert len(judge.asked) == len(set(judge.asked))  # nothing was asked twice
        found = load_examples(path).examples
        assert sum(len(row.feedback) for row in found) == sum(len(row.responses) for row in found)
    finally:
        judge.stop()


def test_what_is_chosen_is_written_and_counted(sampled, scorer_dir, tiny_model_dir, prompts, tmp_path):
    with opened("test", config_of(tmp_path / "out", tiny_model_dir, prompts)) as loop:
        labelled = label(loop, "labelled.jsonl", sampled, SourceConfig((str(scorer_dir),), precision="fp32"))
        chosen = ChooseConfig(unfinished="keep", fewer="use")
        path = choose_from(loop, "pairs.jsonl", labelled, chosen, answers=3)
        numbers = loop.numbers("pairs.jsonl")
    rows = load_examples(path).examples
    assert numbers["pairs"] == numbers["kept"] == len(rows) > 6
    assert numbers["prompts"] == 12
    for row in rows:
        (pair,) = row.feedback
        assert pair.strength > 0 and len(row.responses) == 2
