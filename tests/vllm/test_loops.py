"""A loop whose answers vLLM samples: a round of `assent iterate` from the policy's own weights, which is killed while
it samples and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assent.config import IterateConfig
from assent.data.formats import load_examples
from assent.loops.iterate import iterate
from assent.loops.loop import STATE
from assent.loops.parts import Parts

from .conftest import policy
from .test_rewards import tokenizer


class Killed(BaseException):
    """The end of the process, here."""


def test_a_round_is_sampled_by_vllm(tmp_path: Path, monkeypatch) -> None:
    policy(5).model.save_pretrained(tmp_path / "policy")
    tokenizer("plain").save_pretrained(tmp_path / "policy")
    prompts = [{"prompt": f"Name {number} colours."} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "mine.py").write_text(
        "def length(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )

    def config(name: str) -> IterateConfig:
        return IterateConfig(
            model={"path": str(tmp_path / "policy"), "precision": "fp32"},
            data={"train": str(tmp_path / "prompts.jsonl"), "max_length": 96},
            labels={"source": (f"{tmp_path / 'mine.py'}:length",)},
            out=str(tmp_path / name),
            rounds=1,
            answers=3,
            sampling={"max_new_tokens": 6, "max_batch": 1},
            engine={"name": "vllm", "memory": 0.08},
            choose={"fewer": "use", "unfinished": "keep"},
            train={"batch_size": 4, "max_steps": 1, "threads": 1},
            resume="auto",
        )

    put = Parts.put
    made: list[tuple[str, int]] = []

    def killed(self: Parts, number: int, *rows: object) -> None:
        made.append((self.out.name, number))
        put(self, number, *rows)
        if len(made) == 2:
            raise Killed

    monkeypatch.setattr(Parts, "put", killed)
    with pytest.raises(Killed):
        iterate(config("loop"))
    run = iterate(config("loop"))
    sampled = [number for name, number in made if name == "answers.jsonl"]
    assert sampled == [*range(len(sampled))] and len(sampled) > 2, "what was sampled is not sampled again"
    assert (run / "model" / "model.safetensors").is_file()
    rows = {row["stage"]: row["numbers"] for row in map(json.loads, (run.parents[1] / STATE).read_text().splitlines())}
    answers = load_examples(run.parent / "answers.jsonl").examples
    assert rows["round-1/answers.jsonl"]["prompts"] == 6 == len(answers)
    assert sum(len(row.responses) for row in answers) == rows["round-1/answers.jsonl"]["answers"] > 6
    assert rows["round-1/chosen.jsonl"]["pairs"] > 0
