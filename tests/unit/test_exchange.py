"""Results that go to other tools and come from them: alpaca_eval's annotations and its own rows, RewardBench's files,
lm-evaluation-harness's in several versions, answers in any kind of file; and what is refused because it is of other
prompts."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from assent.cli import main
from assent.config import EvalConfig, SamplingConfig
from assent.errors import ConfigError, DataError, RunFolderError
from assent.evaluate.benchmark import evaluate as benchmark_result
from assent.evaluate.benchmark import read_benchmark, write_results
from assent.evaluate.elsewhere import read_results
from assent.evaluate.evaluation import evaluate
from assent.evaluate.policies import PolicySource
from assent.evaluate.results import PolicyTable
from assent.measures.gamed import Gamed
from assent.measures.length_controlled import length_controlled
from assent.measures.rewardbench import ROWS, ROWS_2, SECTIONS
from assent.rewards.group import Scores

SIZE = 60
"""Instructions: enough for a fit, few enough to be quick."""


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder: Path, policies: tuple[str, ...], prompts: list[dict], **options: Any) -> EvalConfig:
    file = write(folder / "prompts.json", prompts)
    return EvalConfig(policies, file, str(folder / "out"), sampling=SamplingConfig(max_new_tokens=6), **options)


# ---- alpaca_eval


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory) -> tuple[EvalConfig, tuple[np.ndarray, ...], Gamed]:
    """What a user of AlpacaEval has: its prompts and baseline, a model's outputs, annotations of some judge, and the
    package's own rows; and the same as numbers."""
    folder, rng = tmp_path_factory.mktemp("alpaca"), np.random.default_rng(0)
    difficulty = rng.normal(size=SIZE)
    index = np.concatenate([np.arange(SIZE)] * 2)
    length = np.concatenate([rng.normal(1.2, 0.4, SIZE), rng.normal(-1.2, 0.4, SIZE)])
    chance = expit(-2 * np.tanh(length) + 0.4 * difficulty[index] + rng.normal(0, 0.5, len(index)))
    gamed = Gamed(chance, length, difficulty[index], index)
    rows = zip(chance, index, length, difficulty[index], strict=True)
    with (folder / "df_gamed.csv").open("w") as file:
        file.write(",preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n")
        for number, row in enumerate(rows):
            file.write(f"{number},{','.join(map(str, row))},False,gamed\n")
    theirs = rng.integers(20, 90, SIZE)
    ours = np.maximum(5, theirs + 20 + rng.normal(0, 15, SIZE)).astype(int)
    logit = 0.3 - 2 * np.tanh((theirs - ours) / 20) + 0.8 * difficulty
    outcome = np.clip(expit(logit + rng.normal(0, 1, SIZE)).round(3), 0.001, 0.999)
    files = {}
    texts = {name: ["x" * int(size - 3) + f"{i:03}" for i, size in enumerate(sizes)]
             for name, sizes in (("gpt4_1106_preview", theirs), ("mine", ours))}  # fmt: skip
    asked = [f"Do {i}." for i in range(SIZE)]
    for name, answers in texts.items():
        outputs = [
            {"instruction": a, "output": t, "generator": name, "dataset": "made"} for a, t in zip(asked, answers)
        ]
        files[name] = write(folder / f"{name}.json", outputs)
    labels = [
        {"instruction": a, "output_1": one, "output_2": two, "preference": 1 + value, "annotator": "judge"}
        for a, one, two, value in zip(asked, *texts.values(), outcome.tolist(), strict=True)
    ]
    labels[7]["preference"] = None
    outcome[7] = math.nan
    prompts = [
        {"instruction": a, "output": "It is.", "generator": "gpt4_1106_preview", "dataset": "made"} for a in asked
    ]
    given = config(
        folder, tuple(files.values()), prompts, labels=write(folder / "labels.json", labels),
        gamed=str(folder / "df_gamed.csv"),
    )  # fmt: skip
    return given, (outcome, ours.astype(float), theirs.astype(float), np.arange(SIZE)), gamed


@pytest.fixture(scope="module")
def evaluated(alpaca) -> Path:
    """The evaluation, by the command line."""
    given = alpaca[0]
    words = [*given.policies, "--prompts", given.prompts, "--labels", str(given.labels), "--gamed", str(given.gamed)]
    words += ["--measures", "win-rate", "length-adjusted-win-rate", "length-controlled-win-rate"]
    assert main(["eval", *words, "--out", given.out]) == 0
    return Path(given.out)


def test_the_length_controlled_rate_is_reached_by_the_command(alpaca, evaluated: Path):
    _, rows, gamed = alpaca
    table = PolicyTable.load(evaluated / "evaluation.json")
    mine = table.policies[1]
    found = mine.numbers["length-controlled-win-rate/labels"]
    expected = length_controlled(*rows, gamed, resamples=0).rate
    assert (found.number.value, found.number.n) == (expected.value, SIZE - 1)
    assert found.number.low < expected.value < found.number.high
    assert found.failures == {"no preference in the labels": 1}
    raw = mine.numbers["win-rate/labels"].number.value
    assert raw == pytest.approx(np.nanmean(rows[0])) and expected.value < raw - 0.05, "the longer answers were liked"
    assert "length-adjusted-win-rate/labels" in mine.numbers
    assert "gpt4_1106_preview" in table.measures["length-controlled-win-rate"].about


def test_annotations_have_alpaca_evals_shape(alpaca, evaluated: Path):
    outcome = alpaca[1][0]
    rows = json.loads((evaluated / "annotations" / "labels" / "mine.json").read_text())
    assert [row["index"] for row in rows] == [place for place in range(SIZE) if place != 7], "failures are left out"
    assert list(rows[0])[:6] == ["instruction", "output_1", "generator_1", "output_2", "generator_2", "dataset"]
    for row in rows:
        place = row["index"]
        assert (row["instruction"], row["dataset"]) == (f"Do {place}.", "made")
        assert (row["generator_1"], row["generator_2"]) == ("gpt4_1106_preview", "mine")
        assert row["output_1"].endswith(f"{place:03}") and row["annotator"] == "labels" and "raw_completion" in row
        assert row["preference"] == pytest.approx(1 + outcome[place])


def test_annotations_read_by_alpaca_eval_give_our_numbers(alpaca, evaluated: Path, monkeypatch):
    """Where that package is installed (it is in no extra: it brings much else)."""
    glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate")
    import pandas

    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(alpaca[0].gamed))
    table = pandas.DataFrame(json.loads((evaluated / "annotations" / "labels" / "mine.json").read_text()))
    found = glm.get_length_controlled_winrate(table, save_weights_dir=None)
    mine = PolicyTable.load(evaluated / "evaluation.json").policies[1].numbers
    ours = {name: 100 * mine[f"{name}/labels"].number.value for name in ("win-rate", "length-controlled-win-rate")}
    assert found["win_rate"] == pytest.approx(ours["win-rate"]) and found["n_total"] == SIZE - 1
    assert found["length_controlled_winrate"] == pytest.approx(ours["length-controlled-win-rate"], abs=0.1)


def test_what_was_written_is_read_back(alpaca, evaluated: Path, tmp_path: Path):
    """A folder of annotations, whatever the source was called, and model outputs."""
    files = tuple(str(evaluated / "model_outputs" / f"{name}.json") for name in ("gpt4_1106_preview", "mine"))
    labels = str(evaluated / "annotations" / "labels")
    again = replace(
        alpaca[0], policies=files, labels=labels, gamed=None, out=str(tmp_path / "o"), measures=("win-rate",)
    )
    before, after = PolicyTable.load(evaluated / "evaluation.json"), evaluate(again)
    numbers = [table.policies[1].numbers["win-rate/labels"].number for table in (before, after)]
    assert numbers[0] == numbers[1] and numbers[0].n == SIZE - 1
    assert after.policies[1].outcomes == before.policies[1].outcomes


def test_prompts_that_end_alike_are_told_apart(tmp_path: Path):
    """Two conversations with one last question: alpaca_eval's instruction names neither."""
    talks = [[{"role": "user", "content": f"I have {n}."}, {"role": "assistant", "content": "So?"},
              {"role": "user", "content": "How many?"}] for n in range(30)]  # fmt: skip
    for name, text in (("a", "few"), ("b", "{n} of them")):
        write(tmp_path / f"{name}.jsonl", [{"prompt": t, "response": text.format(n=n)} for n, t in enumerate(talks)])
    (tmp_path / "gold.py").write_text("def score(prompt, answer):\n    return float(answer[0] in prompt[0].content)\n")
    policies = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    given = config(tmp_path, policies, [{"prompt": t} for t in talks], scorer=f"{tmp_path / 'gold.py'}:score")
    first = evaluate(replace(given, measures=("win-rate",)))
    outputs, annotations = (tmp_path / "out" / name for name in ("model_outputs", "annotations"))
    rows = json.loads((annotations / "gold" / "b.json").read_text())
    assert rows[3]["instruction"] == "How many?" and rows[3]["prompt"] == talks[3] and rows[3]["preference"] == 2
    back = replace(
        given, policies=(str(outputs / "a.json"), str(outputs / "b.json")), scorer=None,
        labels=str(annotations / "gold"), out=str(tmp_path / "back"), measures=("win-rate",),
    )  # fmt: skip
    again = evaluate(back)
    assert again.policies[1].numbers["win-rate/labels"] == first.policies[1].numbers["win-rate/gold"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"preference": 0.5, "index": 0}], "needs a column 'std_delta_len'. Row 1 has: preference, index. Expected"),
        ([{"instruction_difficulty": 0.1}], "needs a column 'preference'"),  # instruction_difficulty.csv
        ([{"preference": 1.7, "std_delta_len": 0, "instruction_difficulty": 0, "index": 0}], "from 0 to 1. Got 1.7"),
        (
            [{"preference": 0.7, "std_delta_len": 0, "instruction_difficulty": 0, "index": i} for i in range(805)],
            "of 805 instructions, numbered 0 to 804 by their places in AlpacaEval's reference outputs.",
        ),
        (
            [{"preference": 0.7, "std_delta_len": 0, "instruction_difficulty": 0, "index": i} for i in range(2)],
            "has 3 prompts, in places 0 to 2. Give --prompts alpaca_eval_gpt4",
        ),
    ],
)  # fmt: skip
def test_another_file_than_alpaca_evals_rows_is_refused(tmp_path: Path, rows: list[dict], message: str):
    prompts = [{"prompt": f"Do {i}."} for i in range(3)]
    given = config(tmp_path, ("nowhere.jsonl",), prompts, gamed=write(tmp_path / "gamed.csv", rows))
    with pytest.raises(DataError, match="--gamed .*gamed.csv: ") as refused:
        evaluate(given)
    assert message in str(refused.value)
    if len(rows) > 3:  # the first prompts of AlpacaEval's are AlpacaEval's
        with pytest.raises(DataError, match="nowhere.jsonl"):
            evaluate(replace(given, limit=2))


def test_the_rate_of_alpaca_evals_name_needs_its_rows(tmp_path: Path):
    files = [write(tmp_path / f"{n}.jsonl", [{"prompt": "Do 0.", "response": n}]) for n in "ab"]
    given = config(tmp_path, tuple(files), [{"prompt": "Do 0.", "want": "a"}], rewards=("contains=want",))
    with pytest.raises(ConfigError, match="length-controlled-win-rate needs AlpacaEval's own rows .*--gamed df_gamed"):
        evaluate(replace(given, measures=("length-controlled-win-rate",)))


# ---- answers in any kind of file


def test_answers_in_every_kind_of_file(tmp_path: Path):
    prompts = [{"prompt": f"Name {i}, please."} for i in range(3)]
    asked = [row["prompt"] for row in prompts]
    rows: dict[str, list[dict]] = {
        "plain.csv": [{"prompt": p, "response": f"r, {i}\nline", "tokens": 3 + i, "finished": i > 0}
                      for i, p in enumerate(asked)],
        "tab.json": [{"question": p, "answer": f"a{i}"} for i, p in enumerate(asked)],
        "turns.jsonl": [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": f"m{i}"}]}
                        for i, p in enumerate(asked)],
        "shared.jsonl": [{"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": f"s{i}"}]}
                         for i, p in enumerate(asked)],
        "cells.csv": [{"prompt": json.dumps([{"role": "user", "content": p}]), "output": f"c{i}"}
                      for i, p in enumerate(asked)],
        "blank.csv": [{"instruction": p, "input": "", "output": ""} for p in asked],
    }  # fmt: skip
    for name, own in rows.items():
        write(tmp_path / name, own)
    given = config(tmp_path, tuple(str(tmp_path / name) for name in rows), prompts, measures=("characters",))
    table = evaluate(replace(given, measures=("characters", "length")))
    found = {policy.name: policy.numbers["characters"].number for policy in table.policies}
    assert {name: number.value for name, number in found.items()} == {
        "plain": 9, "tab": 2, "turns": 2, "shared": 2, "cells": 2, "blank": 0
    }  # fmt: skip
    assert all(number.n == 3 for number in found.values())
    assert table.policies[0].numbers["length"].number.value == 4, "tokens of a CSV file are numbers"
    lines = list(csv.DictReader((tmp_path / "out" / "evaluation.csv").open()))
    assert {(row["policy"], row["value"]) for row in lines} >= {("plain", "9.0"), ("plain", "4.0")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Do 0.", "text": "x"}, "it has no answer. Expected one of the columns response, output"),
        ({"messages": [{"role": "user", "content": "Do 0."}]}, "messages: expected a conversation that ends with the"),
        ({"prompt": "Do 9.", "response": "x"}, "1 of its rows answer no prompt of"),
        ({"prompt": "Do 0.", "response": 3}, "response: expected a text; got int"),
    ],
)  # fmt: skip
def test_rows_that_are_no_answers(tmp_path: Path, row: dict, message: str):
    given = config(tmp_path, (write(tmp_path / "a.jsonl", [row]),), [{"prompt": "Do 0."}])
    with pytest.raises(DataError, match=r"POLICY .*a\.jsonl") as refused:
        evaluate(given)
    assert message in str(refused.value)


# ---- other prompts


def test_results_of_other_prompts_are_refused(tmp_path: Path, capsys):
    prompts = [{"prompt": f"Do {i}."} for i in range(4)]
    answers = {n: [{"prompt": f"Do {i}.", "response": f"{n}{i}"} for i in range(4)] for n in "ab"}
    files = tuple(write(tmp_path / f"{name}.jsonl", rows) for name, rows in answers.items())
    verdict = {"instruction": "Do 1.", "output_1": "a1", "output_2": "b1", "preference": 2}
    other = verdict | {"instruction": "Do 9."}
    given = config(
        tmp_path, files, prompts, labels=write(tmp_path / "v.jsonl", [verdict, other]), measures=("win-rate",)
    )
    assert evaluate(given).policies[1].numbers["win-rate/labels"].number.n == 1
    said = "1 of the 2 verdicts of"
    assert said in PolicyTable.load(tmp_path / "out" / "evaluation.json").notes[0]
    assert main(["eval", *files, "--prompts", given.prompts, "--labels", str(given.labels), "--out", given.out,
                 "--measures", "win-rate", "--resume"]) == 0  # fmt: skip
    assert said in capsys.readouterr().out
    only = replace(given, labels=write(tmp_path / "o.jsonl", [other]), out=str(tmp_path / "new"))
    with pytest.raises(DataError, match="all of its 1 verdicts are about other prompts than"):
        evaluate(only)
    # the first prompts of a file: what is about its others is left out, and the folder of all four is another's
    first = replace(given, limit=2, out=str(tmp_path / "two"))
    assert evaluate(first).prompts == 2
    with pytest.raises(RunFolderError, match=r"of other prompts \(4 of .*prompts.json\) than the 2 of"):
        evaluate(replace(given, limit=2, resume=True))
    assert evaluate(replace(given, resume=True)).prompts == 4


# ---- lm-evaluation-harness


OLD = {"results": {"arc": {"acc": 0.25, "acc_stderr": 0.05}}, "versions": {"arc": 0}}
V040 = {
    "results": {"arc": {"acc,none": 0.25, "acc_stderr,none": 0.05, "alias": "arc"},
                "mmlu": {"acc,none": 0.4, "acc_stderr,none": "N/A", "alias": "mmlu"}},
    "groups": {"mmlu": {"acc,none": 0.4, "acc_stderr,none": "N/A", "alias": "mmlu"}},
    "versions": {"arc": 1.0, "mmlu": "N/A"}, "n-shot": {"arc": 0, "mmlu": 5},
    "config": {"model": "hf", "bootstrap_iters": 100000},
}  # fmt: skip
V0413 = {
    "results": {"arc": {"name": "arc", "alias": "arc", "sample_len": 80, "acc,none": 0.25, "acc_stderr,none": 0.05,
                        "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"}},
    "groups": {"mmlu": {"alias": "mmlu", "sample_len": 7, "acc,none": 0.4, "acc_stderr,none": "N/A",
                        "sample_count": {"acc,none": 7}}},
    "versions": {"arc": 1.0}, "n-shot": {"arc": 0}, "n-samples": {"arc": {"original": 100, "effective": 80}},
    "task_hashes": {"arc": "5d3f"}, "model_name": "org/m",
}  # fmt: skip
BOTH = [PolicySource("a", ""), PolicySource("b", "")]


@pytest.mark.parametrize(
    ("raw", "names", "n"),
    [
        (OLD, {"harness/arc.acc"}, 0),
        (V040, {"harness/arc.acc", "harness/mmlu.acc"}, 0),
        (V0413, {"harness/arc.acc", "harness/mmlu.acc", "harness/arc.exact_match.strict-match"}, 80),
    ],
)  # fmt: skip
def test_results_of_the_harness_in_several_versions(tmp_path: Path, raw: dict, names: set[str], n: int):
    nested = tmp_path / "results" / "org__m"
    nested.mkdir(parents=True)
    (nested / "results_2026-11-02T10-00-00.000000.json").write_text(json.dumps(raw))
    for place in (nested.parent, next(nested.iterdir())):
        found = read_results([f"a={place}"], BOTH, ()).policies["a"]
        assert found.keys() == names
        number = found["harness/arc.acc"].number
        assert (number.value, number.n) == (0.25, n) and number.low == pytest.approx(0.25 - 1.959964 * 0.05)
    assert "harness/mmlu.acc" not in found or found["harness/mmlu.acc"].number.low is None
    newer = {"results": {"arc": {"acc,none": 0.75, "acc_stderr,none": "N/A"}}}
    (nested / "results_2026-11-03T10-00-00.000000.json").write_text(
        json.dumps(newer | {"model_name": raw.get("model_name", "")})
    )
    assert read_results([f"a={nested}"], BOTH, ()).policies["a"]["harness/arc.acc"].number.value == 0.75
    other = nested.parent / "org__other"
    other.mkdir()
    (other / "results_2026-11-03T10-00-00.000000.json").write_text(json.dumps(raw | {"model_name": "org/other"}))
    with pytest.raises(DataError, match="results of several models"):
        read_results([f"a={nested.parent}"], BOTH, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": {"arc": 2.0}}, "its version is 1.0 and 2.0"),
        ({"n-shot": {"arc": 5}}, "its examples in its prompt is 0 and 5"),
        ({"n-samples": {"arc": {"original": 100, "effective": 10}}}, "its samples is 80 and 10"),
        ({"task_hashes": {"arc": "ffff"}}, "its digest is 5d3f and ffff"),
    ],
)  # fmt: skip
def test_tasks_that_were_not_asked_alike_do_not_stand_in_one_row(tmp_path: Path, change: dict, message: str):
    for name, raw in {"a": V0413, "b": V0413 | change}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    words = [f"{name}={tmp_path / name}.json" for name in "ab"]
    with pytest.raises(DataError, match="a and b were not asked the same of arc") as refused:
        read_results(words, BOTH, ())
    assert message in str(refused.value)
    assert read_results([words[0], words[0].replace("a=", "b=")], BOTH, ()).policies.keys() == {"a", "b"}


# ---- RewardBench


def test_the_results_of_assent_trust_are_read_back(tmp_path: Path):
    """Both versions, every subset: what is written, what others write, and what is read are the same numbers."""
    rng = np.random.default_rng(0)
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    first = [{**row, "subset": name, "id": number} for name, size in ROWS.items() for number in range(size)]
    four = {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "7"]}
    tied = {"prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["7"], "subset": "Ties"}
    second = [{**four, "subset": name, "id": str(n)} for name in ROWS_2 if name != "Ties" for n in range(20)]
    second += [tied | {"id": "tied:0"}, tied | {"id": "ref:0", "chosen": ["blue"]}]
    for name, rows in (("rewardbench", first), ("rewardbench-2", second)):
        benchmark = read_benchmark(write(tmp_path / f"{name}.jsonl", rows), name, "train")
        sizes = sum(len(item.example.responses) for item in benchmark.items)
        scores = Scores(rng.normal(size=sizes))
        result = benchmark_result(benchmark, scores)
        paths = write_results(tmp_path / name, benchmark, result, scores, "org/model")
        for path in [path for path in paths if path.suffix == ".json" and "scores" not in str(path)]:
            words = [f"a={path}", f"reward={path}"]
            found = read_results(words, BOTH, ("reward",))
            numbers = found.policies["a"]
            assert numbers[f"{name}/score"].number.value == pytest.approx(result.overall.score.mean)
            for section, value in result.overall.sections.items():
                number = numbers[f"{name}/{section.lower().replace(' ', '-')}"].number
                assert number.value == pytest.approx(value.score.mean)
            assert found.sources[f"reward/{name}.score"] == numbers[f"{name}/score"]
        if name == "rewardbench":
            number = numbers["rewardbench/score"].number
            assert (number.low, number.high) == pytest.approx((result.overall.score.low, result.overall.score.high))
    with pytest.raises(DataError, match="eval-set/MODEL.json of RewardBench"):
        read_results([f"a={tmp_path / 'rewardbench-2' / 'eval-set-scores' / 'org' / 'model.json'}"], BOTH, ())


def test_sections_alone_missing_subsets_and_other_numbers(tmp_path: Path):
    def read(raw: dict) -> dict[str, Any]:
        (tmp_path / "r.json").write_text(json.dumps(raw))
        return dict(read_results([f"a={tmp_path / 'r.json'}"], BOTH, ()).policies["a"])

    sections = dict(zip(SECTIONS, (0.9, 0.6, 0.8, 0.7), strict=True))
    found = read({"model": "org/m", **sections})
    assert found["rewardbench/score"].number.value == pytest.approx(0.75)
    assert found["rewardbench/chat-hard"].number.value == 0.6 and found["rewardbench/score"].number.low is None
    del sections["Safety"]
    missing = read(sections)["rewardbench/score"]
    assert missing.number.value is None and missing.failures == {"Safety is not in the file": 1}
    subsets = {name: 0.5 for name in ROWS if name != "hep-go"}
    found = read({"model": "m", "extra_results": subsets, "num_prompts": 100, "accuracy": 0.5})
    assert found["rewardbench/reasoning"].number.value is None and found["rewardbench/chat"].number.value == 0.5
    assert found["rewardbench/chat"].number.low is None, "of a hundred rows, and nobody says which"
    for wrong, message in ((85.0, "'Chat Hard' must be a share from 0 to 1, got 85.0"), ("x", "got 'x'")):
        with pytest.raises(DataError, match="cannot be used") as refused:
            read({"Chat Hard": wrong})
        assert message in str(refused.value)
    with pytest.raises(DataError, match="neither results of tasks nor subsets of RewardBench"):
        read({"accuracy": 1})


def test_results_stand_in_the_table_and_beside_it(tmp_path: Path, capsys):
    files = [write(tmp_path / f"{n}.jsonl", [{"prompt": "Do 0.", "response": n}]) for n in "ab"]
    (tmp_path / "r.json").write_text(json.dumps(dict(zip(SECTIONS, (0.9, 0.6, 0.8, 0.7), strict=True))))
    (tmp_path / "h.json").write_text(json.dumps(V0413))
    words = [*files, "--prompts", write(tmp_path / "p.jsonl", [{"prompt": "Do 0.", "want": "a"}]), "--rewards"]
    words += ["right=exact=want", "--results", f"a={tmp_path / 'h.json'}", f"right={tmp_path / 'r.json'}"]
    assert main(["eval", *words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "harness/arc.acc" in printed and "right, rewardbench.chat-hard: 60 %" in printed
    assert main(["eval", *words[:-1], f"right={tmp_path / 'h.json'}", "--out", str(tmp_path / "no")]) == 2
    assert "results of lm-evaluation-harness are a policy's, and right is none" in capsys.readouterr().err
    assert main(["eval", "a", "--harness", "x=y", "--prompts", "p", "--out", "o"]) == 2
    assert "--harness is --results in assent: it reads RewardBench's, too." in capsys.readouterr().err
