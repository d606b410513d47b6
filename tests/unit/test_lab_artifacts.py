"""The assistant world on disk: same seed, same bytes; ordinary tools read it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import transformers

from assent.data.records import Message
from assent.errors import ConfigError, RunFolderError
from assent.lab.annotators import Annotator
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import load_world

SCALE = 0.03


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> WorldPaths:
    return build_world(tmp_path_factory.mktemp("lab") / "world", seed=1, scale=SCALE)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def messages(items: list[dict]) -> tuple[Message, ...]:
    return tuple(Message(item["role"], item["content"]) for item in items)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_data(paths: WorldPaths, tmp_path):
    again = build_world(tmp_path / "again", seed=1, scale=SCALE)
    other = build_world(tmp_path / "other", seed=2, scale=SCALE)
    assert contents(paths.root) == contents(again.root)
    assert contents(paths.root).keys() == contents(other.root).keys()
    for name in ("sft", "preferences", "preferences_eval", "ratings", "prompts", "prompts_eval", "world"):
        assert getattr(paths, name).read_bytes() != getattr(other, name).read_bytes()


def test_sizes_and_columns(paths: WorldPaths):
    sizes = {"sft": 4000, "preferences": 10000, "prompts": 2000, "ratings": 1000}
    for name, size in (sizes | {"preferences_eval": 400, "prompts_eval": 400}).items():
        assert len(rows(getattr(paths, name))) == round(size * SCALE)
    for row in rows(paths.preferences):
        assert list(row) == ["prompt", "chosen", "rejected", "margin", "annotator"]
        assert row["chosen"] != row["rejected"] and row["margin"] in (1.0, 2.0, 3.0)
        assert [message["role"] for message in row["chosen"]] == ["assistant"]


def test_held_out_prompts_are_in_no_other_file(paths: WorldPaths):
    seen = {messages(row["messages"][:-1]) for row in rows(paths.sft)}
    seen |= {messages(row["prompt"]) for path in (paths.preferences, paths.prompts) for row in rows(path)}
    seen |= {(Message("user", row["prompt"]),) for row in rows(paths.ratings)}
    held = [messages(row["prompt"]) for path in (paths.prompts_eval, paths.preferences_eval) for row in rows(path)]
    assert len(set(held)) == len(held)
    assert not seen & set(held)


def test_every_row_can_be_graded_by_the_rebuilt_world(paths: WorldPaths):
    world = load_world(paths.world)
    better = [
        world.gold(messages(row["prompt"]), row["chosen"][0]["content"]).reward
        - world.gold(messages(row["prompt"]), row["rejected"][0]["content"]).reward
        for row in rows(paths.preferences)
    ]
    assert sum(gap > 0 for gap in better) > 0.8 * len(better)
    for row in rows(paths.sft):
        world.gold(messages(row["messages"][:-1]), row["messages"][-1]["content"])
    for row in rows(paths.ratings):
        score = world.gold((Message("user", row["prompt"]),), row["response"])
        assert set(score.attributes()) == set(row) - {"prompt", "response"}
    saved = json.loads(paths.world.read_text())
    assert 0.8 < saved["gold_agreement"] < 1.0 and len(saved["annotators"]) == 5


def test_two_ratings_stand_together_for_each_prompt(paths: WorldPaths):
    rated = rows(paths.ratings)
    assert all(
        a["prompt"] == b["prompt"] and a["response"] != b["response"]
        for a, b in zip(rated[::2], rated[1::2], strict=True)
    )


def test_demonstrations_are_mediocre(paths: WorldPaths):
    world = load_world(paths.world)
    rewards = [world.gold(messages(r["messages"][:-1]), r["messages"][-1]["content"]).reward for r in rows(paths.sft)]
    assert 3.5 < sum(rewards) / len(rewards) < 5.2


def test_datasets_and_transformers_read_it(paths: WorldPaths, tmp_path):
    table = datasets.load_dataset("json", data_files=str(paths.preferences), split="train", cache_dir=str(tmp_path))
    assert table.num_rows == len(rows(paths.preferences)) and table[0]["chosen"][0]["role"] == "assistant"
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths.base)
    model = transformers.AutoModelForCausalLM.from_pretrained(paths.base)
    assert model.config.vocab_size == len(tokenizer) <= 768
    assert 5e5 < model.num_parameters() < 2e6
    lengths = []
    for row in rows(paths.sft):
        text = row["messages"][-1]["content"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        lengths.append(len(ids))
    assert sum(lengths) / len(lengths) < 30


def test_annotators_can_be_chosen(tmp_path):
    crowd = [Annotator("zoe", careless=1.0)]
    paths = build_world(tmp_path / "w", scale=0.1, annotators=crowd)
    assert {row["annotator"] for row in rows(paths.preferences)} == {"zoe"}
    assert 0.35 < json.loads(paths.world.read_text())["gold_agreement"] < 0.65


def test_nothing_is_overwritten_and_nonsense_is_refused(paths: WorldPaths, tmp_path):
    before = contents(paths.root)
    with pytest.raises(RunFolderError, match="not empty"):
        build_world(paths.root)
    assert contents(paths.root) == before
    with pytest.raises(ConfigError, match="scale > 0"):
        build_world(tmp_path / "x", scale=0)
    with pytest.raises(ConfigError, match="annotator"):
        build_world(tmp_path / "x", annotators=())
