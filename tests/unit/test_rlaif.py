"""Constitutional AI and RLCD as loops: their stages, what passes between them, and going on after a server left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from assent.cli import main
from assent.config import ConstitutionConfig, InitConfig, RLCDConfig
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Pair, Response
from assent.errors import ConfigError, Incomplete, RunFolderError
from assent.lab.annotators import Annotator
from assent.lab.judges import GoldJudge
from assent.lab.world import AssistantWorld
from assent.loops.constitution import constitution
from assent.loops.rlaif import compares
from assent.loops.rlcd import rlcd
from assent.models.init import random_model, train_tokenizer, write_new_model

WORLD = AssistantWorld(0)
PRINCIPLES = {
    "principles": [{"critique": "What is harmful?", "revision": "Take it out.", "choice": "Choose the kind one."}]
}


class Moody(GoldJudge):
    """A judge that after `left` more requests answers none. Asked a contrasting prompt it
    writes what the prompt asks for."""

    left = 1 << 30

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            return {"choices": [{"message": {"content": ""}}]}  # no finish_reason: no completion
        text = body["messages"][-1]["content"]
        if text.startswith(("kind: ", "cruel: ")):
            said = "Sure! Please ask first." if text.startswith("kind") else f"No. {len(text)}"
            return {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        return super().reply(body)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny random model with words of the world, and files of prompts and principles beside it."""
    folder = tmp_path_factory.mktemp("rlaif")
    rng = np.random.default_rng(0)
    prompts = [WORLD.draw_prompt(rng) for _ in range(5)]
    texts = [turn.content for prompt in prompts for turn in prompt] + ["user assistant system", "Sure! No."]
    size = InitConfig("", "", vocab_size=280, hidden_size=16, layers=1, heads=2, kv_heads=1, context=512)
    tokenizer = train_tokenizer(texts, size.vocab_size)
    write_new_model(tokenizer, random_model(tokenizer, size), folder / "base")
    rows = [to_row(Example(prompt)) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(map(json_line, rows)))
    (folder / "p.yaml").write_text(yaml.safe_dump(PRINCIPLES))
    (folder / "t.yaml").write_text("- {positive: 'kind: {prompt}', negative: 'cruel: {prompt}'}\n")
    answers = tuple(Response((Message("assistant", text),)) for text in ("Yes.", "No."))
    people = Example((Message("user", "Is it?"),), answers, (Pair(0, 1, annotator="ada"),))
    (folder / "people.jsonl").write_text(json_line(to_row(people)))
    return folder


@pytest.fixture
def server() -> Iterator[Moody]:
    with Moody(WORLD, Annotator("gold", temperature=0.5)) as made:
        yield made


def options(base: Path, out: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(base / "base"), "precision": "fp32"},
        "data": {"train": str(base / "prompts.jsonl"), "max_length": 200},
        "out": str(out),
        "train": {"batch_size": 2, "max_steps": 1, "threads": 1},
        "sampling": {"max_new_tokens": 8},
        "method": "rloo",
        "options": {"rloo.rollout.responses": "2"},
        "remote": {"retries": 0, "timeout": 10.0},
    }


def cai(base: Path, out: Path, server: Moody, **more: Any) -> ConstitutionConfig:
    given = options(base, out) | {"source": f"ai=openai={server.url}", "principles": str(base / "p.yaml")} | more
    return ConstitutionConfig(**given)


def state(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "loop.jsonl").read_text().splitlines()]


def test_constitutional_ai_and_going_on_when_the_server_left(base: Path, tmp_path: Path, server: Moody):
    held = {"data": {**options(base, tmp_path)["data"], "eval": str(base / "prompts.jsonl")}, "measures": ("length",)}
    loop = tmp_path / "loop"
    config = cai(base, loop, server, comparisons=str(base / "people.jsonl"), **held)
    last = constitution(config)
    assert last == loop / "round-1" / "rloo" and (last / "model" / "model.safetensors").is_file()
    asked = server.asked
    assert constitution(replace(config, resume="auto")) == last and server.asked == asked  # nothing is done again
    loop.rename(tmp_path / "whole")
    rows = state(tmp_path / "whole")
    stages = ["prompts.jsonl", "sl/answers.jsonl", "sl/revisions.jsonl", "sl/sft"]
    stages += [
        f"round-1/{name}" for name in ("answers.jsonl", "choices.jsonl", "pairs.jsonl", "reward", "rloo", "eval")
    ]
    assert [row["stage"] for row in rows] == stages
    revised = load_examples(str(tmp_path / "whole/sl/revisions.jsonl")).examples
    assert all(len(row.meta["chain"]) == 2 and row.responses[0].source == "ai" for row in revised)
    assert {"length", "length_low", "win_rate"} <= rows[-1]["numbers"].keys()
    pairs = load_examples(str(tmp_path / "whole/round-1/pairs.jsonl")).examples
    assert rows[6]["numbers"] == {"feedback": len(pairs) - 1, "comparisons": 1}
    assert all(0.5 < pair.share < 1 for row in pairs[:-1] for pair in row.feedback) and compares(pairs[-1])
    made = yaml.safe_load((tmp_path / "whole/round-1/reward/resolved.yaml").read_text())
    assert made["reward"]["votes"] is True and made["model"]["path"].endswith("sl/sft")
    policy = yaml.safe_load((tmp_path / "whole/round-1/rloo/resolved.yaml").read_text())
    assert policy["rewards"]["model"] == [str(loop / "round-1/reward")]
    assert policy["data"]["train"] == str(base / "prompts.jsonl")

    server.left = 4
    with pytest.raises(Incomplete, match="--resume asks them alone"):
        constitution(config)
    assert [row["stage"] for row in state(loop)] == ["prompts.jsonl", "sl/answers.jsonl"]
    server.left = 7 + 2 + 3  # the rest of the revisions, what the judge is tried with, and three of ten choices
    with pytest.raises(Incomplete):
        constitution(replace(config, resume="auto"))
    server.left = 1 << 30
    constitution(replace(config, resume="auto"))
    for name in ("loop.jsonl", "sl/revisions.jsonl", "round-1/choices.jsonl", "round-1/rloo/model/model.safetensors"):
        assert (loop / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_rlcd_from_the_command_line_and_by_python(base: Path, tmp_path: Path, server: Moody):
    given = options(base, tmp_path / "loop") | {
        "templates": str(base / "t.yaml"),
        "contrasted": f"m=openai={server.url}",
        "rounds": 2,
    }
    last = rlcd(RLCDConfig(**given))
    assert last == tmp_path / "loop" / "round-2" / "rloo"
    pairs = load_examples(str(tmp_path / "loop/round-1/pairs.jsonl")).examples
    assert len(pairs) == 5 and all(row.feedback == (Pair(0, 1, annotator="contrast"),) for row in pairs)
    assert {row.responses[0].text for row in pairs} == {"Sure! Please ask first."}
    second = yaml.safe_load((tmp_path / "loop/round-2/reward/resolved.yaml").read_text())
    assert second["model"]["path"] == str(tmp_path / "loop/round-1/rloo") and second["reward"]["votes"] is False
    file = tmp_path / "rlcd.yaml"
    file.write_text(yaml.safe_dump(given | {"out": str(tmp_path / "cli"), "rounds": 1}))
    assert main(["rlcd", "--config", str(file)]) == 0
    for name in ("contrasts.jsonl", "pairs.jsonl", "rloo/model/model.safetensors"):
        assert (tmp_path / "cli/round-1" / name).read_bytes() == (tmp_path / "loop/round-1" / name).read_bytes()
    assert main(["rlcd", "--config", str(file)]) == 2  # without --resume
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"method": "dpo"}, r"--method: 'dpo' does not learn from rewards\."),
        ({"options": {"ppo.kl.coef": "1"}}, r"begins with none of the runs \(sft, reward, rloo\)"),
        ({"options": {"reward.loss.beta": "1"}}, r"reward has no option 'loss\.beta'"),
        ({"options": {"sft.data.train": "x"}}, r"sft has no option 'data\.train'"),
        ({"judge": {"prompt": "pairwise-letter"}}, "does not show the principle to the judge"),
        ({"source": "http://localhost:1"}, r"--source: expected openai=URL or judge=FOLDER"),
        ({"source": "judge=x", "judge": {"model": "m"}}, r"--judge\.model is read only with"),
        ({"principles": "none.yaml"}, r"--principles none\.yaml: No such file"),
        ({"scorer": "x.py:f"}, r"--scorer is about the evaluation of each round"),
        ({"choices": "none.yaml"}, r"--choices none\.yaml: No such file"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(base: Path, tmp_path: Path, server: Moody, more, reason: str):
    with pytest.raises(ConfigError, match=reason):
        constitution(cai(base, tmp_path / "out", server, **more))
    assert not (tmp_path / "out").exists() and server.asked == 0


def test_a_round_without_a_usable_pair_ends_the_loop(base: Path, tmp_path: Path, server: Moody):
    server.unreadable = 1.0
    with pytest.raises(Exception, match="none of 5 answers was revised"):
        constitution(cai(base, tmp_path / "out", server))
    with pytest.raises(RunFolderError, match="an earlier loop is there"):
        constitution(cai(base, tmp_path / "out", server))
