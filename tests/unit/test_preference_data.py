"""Feedback on its way into the objectives, as a person meets it: what fits is converted and said, what does not fit is
one message with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from assent import cli
from assent.algorithms.preference.feedback import balanced
from assent.algorithms.preference.step_loss import terms_of, weight_by_prompt
from assent.config import DataConfig, ModelConfig, preference_config
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.tree import Branch, TokenTree, collate
from assent.data.views import pair_view, ranking_view
from assent.train.log import read_metrics

PAIRS = [{"prompt": f"Egg {i}?", "chosen": "Yes, boil it.", "rejected": f"No {i}."} for i in range(6)]
LABELS = [{"prompt": f"Egg {i}?", "completion": f"Answer {i}.", "label": i % 3 == 0} for i in range(9)]
DEMONSTRATIONS = [{"prompt": f"Egg {i}?", "completion": "Boil it."} for i in range(6)]


def judged(feedback: Sequence[dict], number: int = 6, answers: int = 3) -> list[dict]:
    """Prompts with several answers and the same feedback on them, in assent's own shape."""
    responses = [{"messages": [{"role": "assistant", "content": f"Answer {j}."}]} for j in range(answers)]
    prompts = [[{"role": "user", "content": f"Egg {i}?"}] for i in range(number)]
    return [{"prompt": p, "responses": responses, "feedback": list(feedback), "meta": {}} for p in prompts]


def ratings(*values: float) -> list[dict]:
    scores = [{"kind": "rating", "response": i, "scores": {"overall": value}} for i, value in enumerate(values)]
    return judged(scores, answers=len(values))


RANKED = judged([{"kind": "ranking", "levels": [[0], [1], [2]]}])
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path, capsys) -> Run:
    """Runs `assent OBJECTIVE` for two steps on these rows: exit code, and what was said."""

    def command(objective: str, rows: Sequence[dict], *options: str, held: Sequence[dict] = ()) -> tuple[int, str]:
        for name, content in (("rows.jsonl", rows), ("held.jsonl", held)):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
        shared = ["--model.path", tiny_model_dir, "--data.train", tmp_path / "rows.jsonl", "--out", tmp_path / "run"]
        shared += ["--data.max_length", 96, "--train.max_steps", 2, "--train.batch_size", 4, "--probe.prompts", 0]
        shared += ["--data.eval", tmp_path / "held.jsonl"] if held else []
        code = cli.main([objective, *map(str, shared), *options])
        return code, capsys.readouterr().err

    return command


def trees(tmp_path: Path, rows: Sequence[dict], view, tokenizer) -> list[TokenTree]:
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, _ = view(load_examples(str(tmp_path / "some.jsonl")).examples)
    return Chat(tokenizer).trees(examples, 96)[0]


# ---- what cannot be learnt from


@pytest.mark.parametrize(
    ("objective", "rows", "parts"),
    [
        ("kto", [{**row, "label": True} for row in LABELS], ["all 9 answers are desirable; kto needs both", "sft"]),
        ("bco", [{**row, "label": False} for row in LABELS], ["all 9 answers are undesirable; bco needs both kinds."]),
        ("odpo", PAIRS, ["6 of 6 pairs have no strength", "Without strengths: assent dpo"]),
        ("odpo", [{**PAIRS[0], "margin": 2.0}, *PAIRS[1:]], ["5 of 6 pairs have no strength"]),
        ("kto", ratings(3, 1), ["ratings say more or less, but not yes or no", "with --threshold 3, answers rated 3"]),
        ("dpo", DEMONSTRATIONS, ["comparisons are needed", "This file has demonstrations, which fit: sft, ppo"]),
        ("kto", DEMONSTRATIONS, ["judged answers are needed", "This file has demonstrations, which fit: sft, ppo"]),
        ("dpo", LABELS, ["This file has yes/no labels, which fit: sft, kto, ppo", "yes/no labels compare nothing"]),
        ("pl-dpo", LABELS, ["rankings are needed", "which fit: sft, kto, ppo"]),
        ("nca", DEMONSTRATIONS, ["ratings of two answers to one prompt are needed", "which fit: sft, ppo"]),
        ("simpo", ratings(2, 2), ["comparisons are ties, so nothing says which answers are better"]),
        ("kto", [{**row, "prompt": "Egg?"} for row in LABELS], ["all 9 prompts of these data are the same", "use bco"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(run: Run, objective: str, rows: list[dict], parts: list[str]):
    code, said = run(objective, rows)
    assert code == 2 and said.startswith("error: ") and "Traceback" not in said
    for part in parts:
        assert part in said


def test_strengths_are_asked_for_wherever_odpo_reads_pairs(run: Run, tmp_path):
    strong = [{**row, "margin": 1.0 + i} for i, row in enumerate(PAIRS)]
    code, said = run("odpo", strong, held=PAIRS[:2])
    assert code == 2 and f"{tmp_path / 'held.jsonl'}: 2 of 2 pairs have no strength" in said
    code, said = run("dpo", PAIRS, "--plus", "odpo:0.5")
    assert code == 2 and f"{tmp_path / 'rows.jsonl'}: 6 of 6 pairs have no strength" in said
    assert run("dpo", strong, "--plus", "odpo:0.5", held=strong[:2])[0] == 0


@pytest.mark.parametrize("objective", ["kto", "bco", "apo-zero-unpaired"])
def test_held_out_answers_may_all_be_of_one_kind(run: Run, tmp_path, objective: str):
    code, said = run(objective, LABELS, held=[row for row in LABELS if row["label"]])
    assert code == 0, said
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert "eval/reward/desirable" in last and "eval/reward/undesirable" not in last


def test_bad_rows_are_named_with_their_place(run: Run, tmp_path):
    code, said = run("dpo", [*PAIRS, {"prompt": "Egg?", "chosen": "same", "rejected": "same"}])
    assert code == 2 and f"{tmp_path / 'rows.jsonl'}:7: rejected: equal to chosen" in said


# ---- what is converted


@pytest.mark.parametrize(
    ("objective", "rows", "options", "sentence"),
    [
        ("dpo", ratings(3, 1, 2), [], "ratings are read as pairs: every two answers to a prompt that differ"),
        ("dpo", RANKED, [], "rankings are read as pairs: every two answers of different levels"),
        ("odpo", ratings(3, 1, 2), [], "ratings are read as pairs"),
        ("kto", PAIRS, [], "pairs are read as yes/no labels: answers that only win are desirable"),
        ("bco", ratings(3, 1, 2), ["--threshold", "2.5"], "reaches --threshold are desirable"),
        ("pl-dpo", PAIRS, [], "pairs are read as rankings"),
        ("pl-dpo", ratings(3, 1, 2), [], "ratings are read as rankings"),
        ("nca", RANKED, [], "rankings are read as ratings: 0 for the best level"),
        ("infonca", PAIRS, [], "pairs are read as ratings: 0 for the best answer"),
    ],
)
def test_other_feedback_is_converted_and_the_run_says_so(
    run: Run, tmp_path, objective: str, rows: list[dict], options: list[str], sentence: str
):
    code, said = run(objective, rows, *options)
    assert code == 0 and said.count(sentence) == 1
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(row["loss"]) for row in metrics) and (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize(
    ("objective", "rows"), [("dpo", PAIRS), ("kto", LABELS), ("pl-dpo", RANKED), ("nca", ratings(3, 1, 2))]
)
def test_an_objectives_own_feedback_is_not_worth_a_word(run: Run, objective: str, rows: list[dict]):
    code, said = run(objective, rows)
    assert code == 0 and "are read as" not in said


# ---- what counts how much


def test_kto_weighs_both_kinds_the_same():
    def labelled(yes: int, no: int) -> list[TokenTree]:
        branch = Branch(np.arange(3, 6), np.ones(3, bool))
        labels = np.array([1.0] * yes + [0.0] * no + [np.nan], np.float32)  # the last: an answer to another prompt
        return [TokenTree(np.arange(3), (branch,) * len(labels), per_response={"label": labels})]

    def weights(objective: str, yes: int, no: int, **loss) -> tuple[float, float]:
        start = preference_config(objective, model=ModelConfig("m"), data=DataConfig("t"), out="o", loss=loss)
        (term,) = balanced(terms_of(start), labelled(yes, no))
        assert term.loss.options["beta"] == start.loss.beta and set(term.loss.options) == set(vars(start.loss))
        return term.loss.options["desirable_weight"], term.loss.options["undesirable_weight"]

    assert weights("kto", 3, 3) == (1.0, 1.0)
    assert weights("kto", 2, 8) == (4.0, 1.0)
    assert weights("kto", 8, 2) == (1.0, 4.0)
    assert weights("kto", 2, 8, desirable_weight=1.5) == (1.5, 1.0)
    assert weights("kto", 2, 8, undesirable_weight=0.5) == (4.0, 0.5)
    other = terms_of(preference_config("bco", model=ModelConfig("m"), data=DataConfig("t"), out="o"))
    assert balanced(other, labelled(2, 8)) == other


def test_every_prompt_counts_the_same_however_many_pairs_it_has(tmp_path, tokenizer):
    own = trees(
        tmp_path, [*RANKED[:1], *judged([{"kind": "pair", "chosen": 1, "rejected": 2}], 2)], pair_view, tokenizer
    )
    batch = collate(own)
    assert [len(tree.pairs) for tree in own] == [3, 1, 1]
    assert weight_by_prompt(batch).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0, 1.0])
    assert weight_by_prompt(collate(own, flat=True)).tolist() == weight_by_prompt(batch).tolist()


def test_strengths_of_ratings_and_levels_of_rankings_reach_the_trees(tmp_path, tokenizer):
    (tree,) = trees(tmp_path, ratings(3, 1, 2.5)[:1], pair_view, tokenizer)
    assert sorted(tree.pairs) == [(0, 1, 2.0), (0, 2, 0.5), (2, 1, 1.5)]
    (tree,) = trees(tmp_path, ratings(3, 1, 3)[:1], ranking_view, tokenizer)
    assert tree.per_response["level"].tolist() == [0.0, 1.0, 0.0]
