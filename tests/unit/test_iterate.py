"""`assent iterate`: its rounds, every recipe of examples/loops, people and the policy itself as labellers, and what
ends a loop with nothing lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assent import cli
from assent.config import IterateConfig, ReportConfig, SourceConfig, WatchConfig, settings
from assent.data.formats import load_examples
from assent.errors import ConfigError, DataError, ModelError, RunFolderError
from assent.evaluate.report import write_report
from assent.evaluate.rounds import read_rounds
from assent.evaluate.runs import LOOP, find_runs
from assent.evaluate.watch import watch
from assent.loops import loop as loop_module
from assent.loops.iterate import iterate
from assent.loops.labelled import spoken
from assent.loops.loop import STATE
from assent.rewards.judge import asking
from assent.rewards.judge.ask import STOPPED, Answer
from tests.looping import World, words_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "loops").glob("*.yaml"))


RATE = """mode: rating
user: |
  <request {{ fence }}>
  {{ prompt }}
  </request {{ fence }}>
  <answer {{ fence }}>
  {{ answer }}
  </answer {{ fence }}>
  Rate it.
form: "[[{verdict}]]"
scale: [1, 10]
"""


def small(world: World, out: Path, **more: Any) -> list[str]:
    """The words of a loop of one round, without evaluations."""
    options = world.shared() | {"rounds": 1, "train.max_steps": 1, "answers": 3, "sampling.max_new_tokens": 8}
    options |= {"choose.fewer": "use", "choose.unfinished": "keep", "out": out}
    return words_of("iterate", {name: value for name, value in (options | more).items() if value is not None})


def config_of(words: list[str]) -> IterateConfig:
    return cli.parse("iterate", words[1:])[1]


def numbers(out: Path) -> dict[str, dict[str, float]]:
    rows = [json.loads(line) for line in (out / STATE).read_text().splitlines()]
    return {row["stage"]: row["numbers"] for row in rows}


@pytest.fixture(scope="module")
def whole(loop_world: World, tmp_path_factory) -> Path:
    """Two rounds with evaluations, a gold reward and a reward model that is trained again on old and new labels."""
    folder = tmp_path_factory.mktemp("iterate")
    (folder / "gold.py").write_text("def gold(prompt, answer):\n    return float(len(answer))\n")
    old = [{"prompt": f"Old {n}?", "chosen": "red green", "rejected": "blue"} for n in range(30)]
    (folder / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    words = small(
        loop_world,
        folder / "loop",
        **{
            "rounds": 2,
            "data.eval_fraction": 0.3,
            "labels.source": loop_world.scorer,
            "labels.precision": "fp32",
            "measures": "distinct-2",
            "scorer": f"{folder / 'gold.py'}:gold",
            "refresh.labels": loop_world.function,
            "refresh.budget": 10,
            "refresh.data": folder / "old.jsonl",
            "refresh.share": 0.6,
        },
    )
    assert cli.main(words) == 0
    return folder / "loop"


def test_rounds_are_what_they_say(whole: Path):
    found = numbers(whole)
    assert list(found)[:4] == ["prompts.jsonl", "held_out.jsonl", "start/eval", "round-1/prompts.jsonl"]
    asked = [{e.prompt for e in load_examples(whole / f"round-{n}" / "prompts.jsonl").examples} for n in (1, 2)]
    held = {e.prompt for e in load_examples(whole / "held_out.jsonl").examples}
    assert not asked[0] & asked[1] and not held & (asked[0] | asked[1])  # new prompts each round, none held out
    assert len(held) + len(asked[0] | asked[1]) == 20
    for number in (1, 2):
        place = f"round-{number}"
        chosen = found[f"{place}/chosen.jsonl"]
        assert chosen["kept"] == chosen["rows"] == chosen["pairs"] > 0
        assert found[f"{place}/dpo"]["steps"] == 1
        assert found[f"{place}/eval"]["gold"] is not None and found[f"{place}/eval"]["kl"] is not None
    assert found["start/eval"]["kl"] == pytest.approx(0, abs=1e-6)
    run = settings.read(type_of_dpo(), whole / "round-2" / "dpo" / "resolved.yaml")
    assert run.model.path == str(whole / "round-1" / "dpo") and run.reference.path is None  # the round's start
    seeds = [settings.read(type_of_dpo(), whole / f"round-{n}/dpo/resolved.yaml").train.seed for n in (1, 2)]
    assert seeds[0] != seeds[1]


def type_of_dpo() -> type:
    from assent.config import DPOConfig

    return DPOConfig


def test_the_reward_model_learns_from_new_labels_and_old(whole: Path):
    found = numbers(whole)
    for number in (1, 2):
        place = f"round-{number}/refresh"
        assert found[f"{place}/asked.jsonl"]["answers"] == 10 == found[f"{place}/labelled.jsonl"]["answers"]
        mixed = found[f"{place}/train.jsonl"]
        assert mixed["old"] == round(1.5 * mixed["fresh"])  # 60 % are old
        held = {e.prompt for e in load_examples(whole / place / "held_out.jsonl").examples}
        assert not held & {e.prompt for e in load_examples(whole / place / "train.jsonl").examples}
        for name in ("before.json", "after.json"):
            summary = json.loads((whole / place / name).read_text())
            assert summary["comparisons"]["accuracy"]["mean"] == found[f"{place}/{name}"]["accuracy"]
    assert found["round-2/refresh/train.jsonl"]["fresh"] > found["round-1/refresh/train.jsonl"]["fresh"]
    labelled = load_examples(whole / "round-2" / "labelled.jsonl").examples
    assert {item.annotator for row in labelled for item in row.feedback} == {"reward"}


def test_a_finished_loop_does_nothing_more_and_other_options_are_refused(whole: Path, caplog):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.safetensors")}
    options = settings.load(IterateConfig, without_command((whole / "loop.yaml").read_text()))
    iterate(replace(options, resume="auto"))
    assert before == {file: file.stat().st_mtime_ns for file in whole.rglob("*.safetensors")}
    with pytest.raises(RunFolderError, match="--answers: 3 -> 4"):
        iterate(replace(options, answers=4, resume="auto"))
    with pytest.raises(RunFolderError, match="Continue it with --resume auto"):
        iterate(options)


def without_command(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("command:"))


def test_the_page_and_the_live_view_show_rounds(whole: Path, tmp_path: Path, capsys):
    write_report(ReportConfig((str(whole),), str(tmp_path / "page.html")))
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Rounds</h2>" in page and "2 of 2 rounds" in page and ">round 2<" in page
    gold = numbers(whole)["round-2/eval"]["gold"]
    assert f"{gold:.4g}" in page[page.index('id="rounds"') :]
    assert [run.name for run in find_runs(whole)] == ["dpo", "reward", "dpo", "reward"]
    watch(WatchConfig((str(whole),)))
    shown = capsys.readouterr().out
    assert "2 of 2 rounds" in shown and "start" in shown and "win rate" in shown


def test_a_broken_state_is_named_and_what_can_be_read_is_shown(whole: Path, tmp_path: Path):
    (tmp_path / LOOP).write_text((whole / LOOP).read_text()[:-40] + "\n[1]\n")
    found = read_rounds(tmp_path)
    assert found.numbers == [0, 1, 2] and any("not whole" in problem for problem in found.problems)
    rows = {(row.stage, row.name): row for row in found.rows()}
    assert rows["", "gold"].values[0] == numbers(whole)["start/eval"]["gold"]
    assert rows["refresh/after", "accuracy"].bounds[1] is not None
    assert LOOP == STATE


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(recipe: Path, loop_world: World, tmp_path: Path, monkeypatch):
    given = settings.read(IterateConfig, recipe, missing=None)
    source = given.labels.source or (str(loop_world.scorer),)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Name {n} colours.", "answer": "3"}) + "\n" for n in range(4))
    )
    more: dict[str, Any] = {"config": recipe, "answers": None, "data.train": tmp_path / "prompts.jsonl"}
    more |= {"labels.source": list(source), "rounds": 1, "labels.precision": "fp32"}
    if given.refresh.options:
        more |= {"refresh.labels": loop_world.function, "refresh.budget": 4}
    if "judge=policy" in source:  # a policy that can say nothing else than a few words
        said = Answer("", STOPPED)
        monkeypatch.setattr(
            asking, "_read", lambda answer, read: read(replace(said, text=f"[[{len(answer.text) % 10 + 1}]]"))
        )
        (tmp_path / "rate.yaml").write_text(RATE)
        more |= {"labels.judge.cache": tmp_path / "cache", "labels.judge.prompt": tmp_path / "rate.yaml"}
        more["labels.judge.max_tokens"] = 8
    if "numeric" in source:  # no answer of this policy is a number: nothing is learnt, and that is said
        with pytest.raises(DataError, match=r"no prompt gives an answer to learn from.*--choose\.threshold"):
            iterate(config_of(small(loop_world, tmp_path / "loop", **more)))
        more |= {"choose.threshold": 0.0}
    out = tmp_path / "again"
    iterate(config_of(small(loop_world, out, **more)))
    assert (out / "round-1" / given.method / "model" / "model.safetensors").is_file()
    assert numbers(out)["round-1/answers.jsonl"]["answers"] > given.answers


def test_people_label_and_the_loop_goes_on(loop_world: World, tmp_path: Path, capsys):
    words = small(loop_world, tmp_path / "loop", **{"labels.source": "people", "per_round": 3, "resume": "auto"})
    assert cli.main(words) == 4  # ends politely
    place = tmp_path / "loop" / "round-1"
    asked = load_examples(place / "to_label.jsonl").examples
    assert len(asked) == 3 and all(not row.feedback and "tokens" not in row.meta for row in asked)
    assert not (place / "people.jsonl").exists()

    rows = [json.loads(line) for line in (place / "to_label.jsonl").read_text().splitlines()]
    other = [{**rows[0], "responses": [{"messages": [{"role": "assistant", "content": "never said"}]}]}]
    (place / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    with pytest.raises(DataError, match=r"labelled\.jsonl:1: answer 1 is none of those"):
        iterate(config_of(words))
    given = []
    for row in reversed(rows):  # another order; the second annotator says the same of the first two answers
        last = len(row["responses"]) - 1
        own = [{"kind": "pair", "chosen": 0, "rejected": last, "annotator": "a"}] if last else []
        given += [{**row, "feedback": own}, {**row, "feedback": [{**item, "annotator": "b"} for item in own]}]
    (place / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    iterate(config_of(words))
    chosen = load_examples(place / "chosen.jsonl").examples
    answers = {row.prompt: row for row in load_examples(place / "answers.jsonl").examples}
    assert chosen
    for row in chosen:
        (pair,) = row.feedback
        sampled = answers[row.prompt].responses
        assert row.responses[pair.chosen] == sampled[0] and row.responses[pair.rejected].text == sampled[-1].text


def test_a_judge_in_a_folder_labels_and_evaluates(loop_world: World, tmp_path: Path, monkeypatch):
    """What it says in the loop is what `assent score` is told by it. Whatever it writes is read as a verdict."""
    mark = lambda answer: replace(answer, text=f"[[{len(answer.text) % 10 + 1}]]", ended=STOPPED)  # noqa: E731
    monkeypatch.setattr(asking, "_read", lambda answer, read: read(mark(answer)))
    (tmp_path / "rate.yaml").write_text(RATE)
    judge = {"labels.source": f"judge={loop_world.policy}", "labels.judge.prompt": tmp_path / "rate.yaml"}
    judge |= {"labels.judge.max_tokens": 8, "labels.judge.temperature": 1, "labels.precision": "fp32"}
    more = {"data.eval_fraction": 0.2, "per_round": 4, "model.path": loop_world.tiny}
    words = small(loop_world, tmp_path / "loop", **judge, **more)
    assert cli.main(words) == 0
    found = numbers(tmp_path / "loop")
    assert found["round-1/labelled.jsonl"]["unscored"] < found["round-1/labelled.jsonl"]["answers"]
    assert found["round-1/eval"]["win_rate"] is not None and found["round-1/chosen.jsonl"]["pairs"] > 0
    labelled = load_examples(tmp_path / "loop" / "round-1" / "labelled.jsonl").examples
    in_loop = [rating.scores["reward"] for row in labelled for rating in row.feedback]
    assert all(1 <= value <= 10 for value in in_loop) and len(set(in_loop)) > 1
    answers, out = tmp_path / "loop" / "round-1" / "answers.jsonl", tmp_path / "scored.jsonl"
    alone = {"judge.prompt": tmp_path / "rate.yaml", "judge.max_tokens": 8, "judge.temperature": 1}
    alone |= {"precision": "fp32", "out": out}
    assert cli.main(["score", judge["labels.source"], str(answers), *words_of("score", alone)[1:]]) == 0
    scored = [json.loads(line)["reward"] for line in out.read_text().splitlines()]
    assert [value for value in scored if value is not None] == in_loop


def test_a_reward_that_prefers_nothing_ends_the_loop_with_all_kept(loop_world: World, tmp_path: Path):
    (tmp_path / "same.py").write_text("def same(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    words = small(loop_world, tmp_path / "loop", **{"labels.source": f"{tmp_path / 'same.py'}:same", "per_round": 3})
    with pytest.raises(DataError, match="no prompt gives a pair.*all rewards are equal.*prefers none of the answers"):
        iterate(config_of(words))
    assert list(numbers(tmp_path / "loop"))[-1] == "round-1/labelled.jsonl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ppo"}, "does not learn from answers that were labelled before"),
        ({"method": "dpoo"}, "Perhaps you meant|did you mean|dpo"),
        ({"choose.take": "above"}, "gives nothing that dpo learns from"),
        ({"method": "sft", "choose.take": "above"}, "--choose.threshold. None is given"),
        ({"method": "nca", "choose.take": "all-pairs"}, "Expected: ratings"),
        ({"answers": 1}, "compares answers to one prompt"),
        ({"choose.threshold_step": 1.0}, "None is given"),
        ({"choose.take": "ratings", "choose.gap": 1.0}, "is about pairs"),
        ({"labels.source": ["people", "numeric"]}, "people are asked alone"),
        ({"refresh.labels": "judge=policy"}, "nothing to train a reward model on"),
        ({"refresh.data": "old.jsonl"}, "that --refresh.labels trains again"),
        ({"refresh.labels": "people", "refresh.method": "dpo"}, "trains no reward model"),
        ({"refresh.labels": "people", "refresh.answers": 4}, "at most all of the --answers"),
        ({"refresh.labels": "people", "refresh.budget": 3}, "must hold two prompts"),
        ({"refresh.labels": "people", "labels.source": "numeric"}, "and --labels.source numeric is none"),
        ({"each_round": "all", "per_round": 2}, "--per_round is about --each_round new"),
        ({"options": "loss.bet:1"}, "dpo has no option 'loss.bet'"),
        ({"options": "loss.beta:-1"}, "--loss.beta must be > 0"),
        ({"labels.judge.attempts": 2}, "--labels.judge.attempts 2 asks again"),
        ({"labels.source": "no/such/model"}, "--labels.source"),
        ({"model.path": "no/such/model"}, "--model.path"),
        ({"data.eval": "e.jsonl", "data.eval_fraction": 0.1}, "exclude each other"),
        ({"engine.url": "http://localhost:1"}, "--engine.url is read only"),
    ],
)
def test_what_does_not_fit_is_said_before_work_is_spent(
    options, message, loop_world: World, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(loop_module.Loop, "stage", lambda *arguments, **more: pytest.fail("work was spent"))
    words = small(loop_world, tmp_path / "loop", **({"labels.source": loop_world.scorer} | options))
    with pytest.raises((ConfigError, ModelError), match=message):
        iterate(config_of(words))


def test_python_is_the_command_line(loop_world: World, tmp_path: Path):
    words = small(loop_world, tmp_path / "cli", **{"labels.source": loop_world.function, "per_round": 4})
    assert cli.main(words) == 0
    config = IterateConfig(
        model={"path": str(loop_world.policy), "precision": "fp32"},
        data={"train": str(loop_world.prompts), "max_length": 64},
        labels={"source": (loop_world.function,)},
        out=str(tmp_path / "python"),
        rounds=1,
        answers=3,
        per_round=4,
        sampling={"max_new_tokens": 8, "max_batch": 4},
        choose={"fewer": "use", "unfinished": "keep"},
        optim={"lr": 1e-3},
        train={"batch_size": 4, "max_steps": 1, "save_every": 1, "threads": 1},
    )
    assert iterate(config) == tmp_path / "python" / "round-1" / "dpo"
    assert (tmp_path / "cli" / STATE).read_text() == (tmp_path / "python" / STATE).read_text()


def test_servers_and_rules_read_with_the_tokenizer_of_the_policy_unless_another_is_named():
    for words, given, want in (
        (("openrlhf=http://127.0.0.1:1",), {}, "policy"),
        (("length=2,4",), {}, "policy"),
        (("openrlhf=http://127.0.0.1:1",), {"tokenizer": "own"}, "own"),
        (("openrlhf=http://127.0.0.1:1", "some/model"), {}, None),
        (("exact",), {}, None),
        (("openai=http://127.0.0.1:1",), {}, None),
    ):
        assert spoken(SourceConfig(source=words, **given), "policy").tokenizer == want, words
