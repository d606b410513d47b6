"""The arithmetic behind docs/benchmarks.md, and the turn-taking of its two sides."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from assent.data.mismatch import with_mismatched  # noqa: E402
from assent.data.packing import Window, window  # noqa: E402
from assent.data.tree import Branch, TokenTree  # noqa: E402
from assent.train.session import open_session  # noqa: E402
from benchmarks import neighbour, plan, table  # noqa: E402
from benchmarks.operations import Weights, multiplied_weights  # noqa: E402
from benchmarks.ours import build, configuration, mismatched_work, train_work, training  # noqa: E402
from benchmarks.ours_score import scoring  # noqa: E402
from benchmarks.ours_sharing import passes, random_tree  # noqa: E402
from benchmarks.reward import remainder  # noqa: E402
from benchmarks.sides import Side, SideFailed  # noqa: E402
from benchmarks.turns import peak_rss  # noqa: E402

WORKER = """
import time
from benchmarks.turns import Turns
turns = Turns(2, versions={"torch": "1"})
print("noise on standard output")
number = 0
while True:
    time.sleep(0.2 if number < 2 else 0.01)
    number += 1
    turns.step(tokens=number)
"""


def steps(*seconds: float, **work: float) -> list[dict[str, float]]:
    return [{"seconds": value, **work} for value in seconds]


def result(ours: list, peer: list, **more: object) -> dict:
    sides = {"ours": {"turns": ours, "peak_rss": 2**30}, "peer": {"turns": peer, "peak_rss": 2**31}}
    return {"what": "dpo", "model": "tiny", "precision": "fp32", "target": 4.5, **sides, **more}


def test_every_benchmark_can_be_imported() -> None:
    """What they name of assent is there; packages of peers may not be."""
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        if file.stem.startswith("__"):
            continue
        try:
            importlib.import_module(f"benchmarks.{file.stem}")
        except ModuleNotFoundError as error:
            assert file.stem.startswith("peer_") and (error.name or "").partition(".")[0] in {"trl", "vllm"}, error


def test_summary_of_known_numbers() -> None:
    work = {"tokens": 100.0, "flops": 40.0, "computed_flops": 30.0}
    ours = [steps(1.0, 1.0, **work), steps(1.0, 9.0, **work)]  # the slow step must not move the median
    peer = [steps(5.0, 5.0, tokens=101.0), steps(5.0, 45.0, tokens=101.0)]
    found = table.summary(result(ours, peer), rate=100.0)
    assert found["ours"] == 100.0 and found["peer"] == 20.0  # our count of tokens for both
    assert found["ratio"] == 5.0 and (found["low"], found["high"]) == (5.0, 5.0)
    assert found["mfu"] == 0.4 and found["mfu_computed"] == 0.3
    assert found["seconds"] == {"ours": 1.0, "peer": 5.0}
    assert found["speed"] == "ratio" and found["memory"]


@pytest.mark.parametrize(
    "what, computed, reached",
    [
        ("dpo", 65.0, "MFU"),
        ("kto", 65.0, "MFU"),
        ("dpo", 64.0, "no"),
        ("ppo", 65.0, "no"),
        ("grpo", 65.0, "no"),
        ("vllm-32", 65.0, "no"),
    ],
)
def test_utilisation_may_stand_in_for_the_ratio_in_training(what: str, computed: float, reached: str) -> None:
    ours = [steps(1.0, tokens=10.0, flops=100.0, computed_flops=computed)]
    found = table.summary(result(ours, [steps(2.0, tokens=10.0)], what=what), rate=100.0)
    assert found["ratio"] == 2.0 and found["speed"] == reached


def test_a_row_without_a_bar_reaches_nothing() -> None:
    ours = [steps(1.0, tokens=10.0, flops=100.0, computed_flops=90.0)]
    row = result(ours, [steps(2.0, tokens=10.0)], what="share-4", target=None)
    assert table.summary(row, rate=100.0)["speed"] == ""
    for side in ("ours", "peer"):
        row[side]["versions"] = {}
    shown = dict(zip(table.HEADER, table.cells(row, 100.0, 1)))
    assert (shown["what"], shown["wanted"], shown["reached"]) == ("GRPO step, 4 to a prompt", "-", "")
    row["ours"]["peak_rss"] = 2**32
    assert dict(zip(table.HEADER, table.cells(row, 100.0, 1)))["reached"] == "more memory"


def test_utilisation_is_of_the_faster_matrix_products() -> None:
    machine = [{"matmul": {"fp32": 1.0, "bf16": 5.0}}, {"matmul": {"fp32": 2.0, "bf16": 4.0}}]
    assert table.rates({"machine": machine}) == {"fp32": 2.0, "bf16": 5.0}


class OneLayer(nn.Module):
    """A stand-in for a language model: 12 weights in its layer (and a norm, which multiplies no matrix), 10 in its
    head, an embedding that is only looked up, and `rank` times 7 weights in an adapter."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        layer = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4))
        if rank:
            layer.lora_A, layer.lora_B = nn.Linear(3, rank, bias=False), nn.Linear(rank, 4, bias=False)
        self.layers = nn.ModuleList([layer])
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(2, 5, bias=False)

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def stand_in(rank: int = 0) -> Any:
    """An algorithm of that model."""
    policy = nn.Module()
    policy.plain = OneLayer(rank)
    return type("Algorithm", (), {"modules": {"policy": policy}})()


@pytest.mark.parametrize(
    "what, tokens, flops, computed",
    [
        ("sft", 11, 6 * 22 * 11, 6 * 12 * 8 + 6 * 10 * 4),
        ("dpo", 11, 8 * 22 * 11, 8 * 12 * 8 + 8 * 10 * 4),
        ("dpo-cached", 11, 6 * 22 * 11, 6 * 12 * 8 + 6 * 10 * 4),
        ("simpo", 11, 6 * 22 * 11, 6 * 12 * 8 + 6 * 10 * 4),
        ("lora-dpo", 11, 6 * (22 + 14) * 11, 6 * (12 + 14) * 8 + 6 * 10 * 4),
        ("ppo", 4, (22 * 12 + 12 * 10) * 11, 18 * 12 * 8 + 10 * 10 * 4),
        ("grpo", 4, 10 * 22 * 11, 10 * 12 * 8 + 10 * 10 * 4),
        ("gkd", 4, 10 * 22 * 11, 10 * 12 * 8 + 10 * 10 * 4),
        ("online-dpo", 4, 10 * 22 * 11, 10 * 12 * 8 + 10 * 10 * 4),
        ("rloo", 4, 12 * 22 * 11, 10 * 12 * 8 + 10 * 10 * 4),
    ],
)
def test_work_of_a_step(what: str, tokens: int, flops: int, computed: int) -> None:
    # Prompt of 3, answers of 2 and 3 tokens, of which 4 are trained: 8 packed, 11 with the prompt once per answer.
    answers = (Branch(np.arange(2), np.array([True, True])), Branch(np.arange(3), np.array([False, True, True])))
    packed = window([TokenTree(np.arange(3), answers)], micro_tokens=100)
    algorithm = stand_in(rank=2 if what == "lora-dpo" else 0)
    assert train_work(what, algorithm, packed) == {"tokens": tokens, "flops": flops, "computed_flops": computed}


def test_a_reward_model_reads_its_last_layer_at_the_answers_ends() -> None:
    answers = (Branch(np.arange(2), np.ones(2, bool)), Branch(np.arange(3), np.ones(3, bool)))
    packed = window([TokenTree(np.arange(3), answers)], micro_tokens=100)
    work = train_work("reward", stand_in(), packed)  # all 12 weights of the layer are behind its attention
    assert work == {"tokens": 11, "flops": 6 * 12 * 11, "computed_flops": 6 * 12 * 2}


def test_work_on_answers_to_other_prompts() -> None:
    # Two prompts of 3 tokens; own answers of 2 and 4 tokens, which are also the answers to the other prompt. The step
    # takes the first: it reads the other's answer of 4 tokens, 3 of them trained.
    cut = np.array([False, True, True, True])
    answers = (Branch(np.arange(2), np.array([True, True])), Branch(np.arange(4), cut))
    label = {"label": np.ones(1, np.float32)}
    own = [TokenTree(np.arange(3) + i, (a,), key=i, per_response=label) for i, a in enumerate(answers)]
    trees = with_mismatched(own, seed=0, max_length=100)
    step = window([own[0]], micro_tokens=100)
    of_method, computed = mismatched_work(trees, step, Weights(12, 10, 0))
    assert of_method == 4 * 22 * (3 + 4)  # policy and reference, over prompt and answer
    assert computed == 2 * 12 * (3 + 4) + 2 * 12 * 4 + 4 * 10 * 3  # the reference has read the prompt already


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What benchmarks.prepare writes, as far as our side reads it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny").symlink_to(tiny_model_dir)
    options = {"num_labels": 1, "dtype": "float32"}
    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, **options).save_pretrained(
        folder / "tiny-reward"
    )
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder / "tiny-reward")
    rows = [
        {
            "conversations": [{"from": "human", "value": f"What is {i}?"}],
            "chosen": {"from": "gpt", "value": f"It is {i}."},
            "rejected": {"from": "gpt", "value": "No idea."},
        }
        for i in range(plan.ANSWERS)
    ]
    for name in {kind.data for kind in plan.WHATS.values() if kind.data}:
        (folder / name).write_text(json.dumps(rows))
    labels = [
        {
            "messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}],
            "label": i % 2 == 0,
        }
        for i in range(2 * plan.BATCH)
    ]
    (folder / plan.WHATS["kto"].data).write_text(json.dumps(labels))
    return folder


COMPILED = {"rloo-compiled", "ppo-compiled"}  # one of three is enough: each is compiled for half a minute


TRAINED = [what for what, kind in plan.WHATS.items() if kind.data and kind.ours == "ours" and what not in COMPILED]


@pytest.mark.parametrize("what", TRAINED)
def test_our_side_takes_steps(what: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ours.NEW_TOKENS", 3)
    work = next(training(what, "tiny", "fp32", prepared))
    assert work["tokens"] > 0 and 0 < work["computed_flops"] <= work["flops"]
    if plan.WHATS[what].data == plan.ROLLOUTS:
        assert work["tokens"] == 3 * plan.ANSWERS  # EOS ends nothing


def test_our_side_scores_pairs(prepared: Path) -> None:
    steps = scoring("score", "tiny", "fp32", prepared)
    first, second = next(steps), next(steps)
    assert first["tokens"] > 2 * plan.SCORED and first["computed_flops"] < first["flops"], "prompts once"
    assert plan.Row("score-sorted", "tiny", "fp32").kind.data == plan.WHATS["score"].data
    assert first["tokens"] == pytest.approx(second["tokens"], rel=0.1)


def test_our_rollouts_are_the_peers(prepared: Path, tmp_path: Path) -> None:
    for what, group, kl in (("grpo", 4, ("loss", "k3", 0.04)), ("rloo", 4, ("reward", "k1", 0.05))):
        config: Any = configuration(what, "tiny", "fp32", prepared, str(tmp_path / what))
        assert config.rollout.responses == plan.GROUP[what] == group
        assert config.train.batch_size * group == plan.ANSWERS == config.sampling.max_batch
        assert (config.rollout.epochs, config.rollout.minibatches) == (1, 1)
        assert (config.kl.place, config.kl.estimator, config.kl.coef) == kl and plan.BETA[what] == kl[2]
        assert config.rewards.functions == (f"{ROOT / 'benchmarks' / 'reward.py'}:remainder",)
    pairs: Any = configuration("online-dpo", "tiny", "fp32", prepared, str(tmp_path / "online-dpo"))
    assert pairs.rollout.responses == plan.GROUP["online-dpo"] == 2 and pairs.train.batch_size == plan.ANSWERS // 2
    assert (pairs.loss.beta, pairs.loss.ties, pairs.kl.coef) == (plan.BETA["online-dpo"], "first", 0.0)
    ppo: Any = configuration("ppo", "tiny", "fp32", prepared, str(tmp_path / "ppo"))
    assert ppo.train.batch_size == plan.ANSWERS and ppo.rewards.model and ppo.rollout.responses == 1


def test_the_reward_function() -> None:
    answers = [[{"role": "assistant", "content": "x" * length}] for length in (0, 6, 7, 9)]
    assert remainder(completions=answers, prompts=["p"] * 4, other=1) == [0.0, 6.0, 0.0, 2.0]


def test_sharing_saves_prompts_and_nothing_else(tiny_model_dir: Path) -> None:
    name, folder = tiny_model_dir.name, tiny_model_dir.parent
    shared, flat = (next(passes(f"{layout}-8", name, "fp32", folder)) for layout in ("share", "flat"))
    answers, prompt = plan.SHARE_ANSWERS, plan.SHARE_PROMPT
    assert shared["tokens"] == flat["tokens"] == answers * (prompt + plan.SHARE_ANSWER)
    assert shared["flops"] == flat["flops"] >= flat["computed_flops"] > shared["computed_flops"]
    alone = next(passes("share-1", name, "fp32", folder))
    assert alone["computed_flops"] == flat["computed_flops"]
    tree = random_tree(3, 100, np.random.default_rng(0))
    assert (len(tree.prompt), len(tree.branches), tree.num_trained) == (prompt, 3, 3 * plan.SHARE_ANSWER)


def test_prompts_to_sample_from_are_new_each_time_and_the_same_everywhere() -> None:
    one, other = plan.random_prompts(3, 50), plan.random_prompts(3, 50)
    first, second = next(one), next(one)
    assert first != second and [next(other), next(other)] == [first, second]
    assert [len(ids) for ids in first] == [plan.GENERATE_PROMPT] * 3
    assert all(10 <= token < 50 for ids in first for token in ids)


def test_our_side_does_what_the_row_is_called(prepared: Path, tmp_path: Path) -> None:
    def built(what: str) -> Any:
        session = open_session(configuration(what, "tiny", "fp32", prepared, str(tmp_path / what)))
        return build(session)

    def trained(algorithm: Any) -> set[bool]:
        return {weight.requires_grad for weight in algorithm.policy.parameters()}

    live, cached, lora, kto, simpo = (built(what) for what in ("dpo", "dpo-cached", "lora-dpo", "kto", "simpo"))
    assert live.reference.model is not None and trained(live) == {True}
    assert cached.reference.model is None and "reference" in cached.stream.trees[0].branches[0].per_token
    assert cached.row is live.row is lora.row and trained(lora) == {False, True}
    assert lora.reference.model is None and "reference" not in lora.stream.trees[0].branches[0].per_token
    assert all(tree.per_response["mismatched"].tolist() == [0, 1] for tree in kto.stream.trees)
    assert simpo.row.name == "SimPO" and simpo.reference is None
    counted = next(iter(kto.windows()))  # the answers to other prompts are work, but no tokens
    own = sum(len(tree.prompt) + len(tree.branches[0]) for tree in kto.stream.trees if tree.key in _keys(counted))
    work = train_work("kto", kto, counted)
    more = mismatched_work(kto.stream.trees, counted, multiplied_weights(kto.policy.plain))
    base = train_work("dpo", live, counted)
    assert work["tokens"] == own
    assert (work["flops"], work["computed_flops"]) == (base["flops"] + more[0], base["computed_flops"] + more[1])


def _keys(step: Window) -> set[int]:
    return {key for batch in step.batches for key in batch.keys}


def test_every_row_has_a_target() -> None:
    rows = plan.rows(list(plan.WHATS), plan.MODELS, plan.PRECISIONS)
    assert len(rows) == len(set(rows)) == 94
    without = {row.what for row in rows if row.target is None}
    sampled = {"generate-128", "generate-256", "compiled-128", "compiled-256"}
    assert without == sampled | {"share-1", "share-4", "share-16", "score-sorted", "gkd", "online-dpo"}
    assert all(row.target >= 1.0 for row in rows if row.target is not None)
    assert plan.Row("dpo", "small", "bf16").target == 3.0 and plan.Row("dpo", "small", "fp32").target == 2.5
    assert plan.Row("ppo", "tiny", "bf16").target == 5.0 and plan.Row("rloo", "small", "fp32").target == 4.0
    assert [str(row) for row in plan.rows(["vllm-32", "generate-32"], ["small"], ["bf16"])] == [
        "generate-32 small bf16",
        "vllm-32 small bf16",
    ]
    assert [plan.size_of(what) for what in ("generate-32", "vllm-256", "flat-16")] == [32, 256, 16]


def test_a_cached_reference_is_measured_against_our_own_dpo() -> None:
    cached, kto = plan.Row("dpo-cached", "tiny", "bf16"), plan.Row("kto", "tiny", "bf16")
    assert cached.tasks == {"ours": "dpo-cached", "peer": "dpo"} and kto.tasks == {"ours": "kto", "peer": "kto"}
    assert cached.modules == {"ours": "ours", "peer": "ours"} and cached.kind.environment == "ours"
    assert kto.modules == {"ours": "ours", "peer": "peer_trl"} and kto.kind.environment == "trl"
    shared = plan.Row("share-4", "small", "bf16")
    assert shared.tasks == {"ours": "share-4", "peer": "flat-4"} and shared.kind.environment == "ours"


def test_a_worker_waits_for_its_turn(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Side([sys.executable, "-c", WORKER], env, tmp_path / "log") as side:
        assert side.read() == {"ready": {"versions": {"torch": "1"}}}
        first, second = side.turn(2), side.turn(1)
    assert [step["tokens"] for step in first["steps"] + second["steps"]] == [3, 4, 5]
    assert all(0.01 <= step["seconds"] < 0.2 for step in first["steps"])
    assert first["peak_rss"] > 2**20
    assert side.process.returncode == 0
    assert "noise" in (tmp_path / "log").read_text()


def test_a_dead_worker_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with Side(command, os.environ, tmp_path / "log") as side, pytest.raises(SideFailed, match="no such model"):
        side.read()


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    machine = {"cpu": {"model": "C", "memory": "1 GiB", "vector instructions": "V"}, "assent": "0"}
    machine |= {"matmul": {"fp32": 100.0, "bf16": 100.0}}
    row = result([steps(1.0, tokens=9.0, flops=1.0, computed_flops=1.0)], [steps(5.0, tokens=9.0)])
    for side in ("ours", "peer"):
        row[side]["versions"] = {"torch": "2"}
    failed = {"what": "sft", "model": "tiny", "precision": "bf16", "error": "x"}
    report = {"date": "D", "quick": False, "threads": 2, "load": [0.0, 1.0], "machine": [machine] * 2}
    table.rewrite(page, [{**report, "rows": [row]}, {**report, "date": "E", "rows": [failed]}])
    text = page.read_text()
    assert table.CACHED not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "1. Measured on D:" in text and "2. Measured on E:" in text
    assert lines[2].startswith("| SFT") and lines[2].endswith("| failed | 2 |")  # in the order of the plan
    assert "| DPO | tiny | fp32 | 9 | 2 | 5.00 (5.00–5.00) | 4.5 |" in lines[3] and lines[3].endswith("| ratio | 1 |")
    table.rewrite(page, [{**report, "rows": [{**row, "what": "dpo-cached", "target": 1.25}]}])
    assert "| 1.25 |" in page.read_text() and page.read_text().endswith(f"{table.CACHED}\n{table.END}\nafter\n")


def test_new_rows_take_the_place_of_old_ones(tmp_path: Path) -> None:
    def run(date: str, *whats: str) -> dict[str, Any]:
        return {"date": date, "rows": [{"what": what, "model": "tiny", "precision": "bf16"} for what in whats]}

    path = tmp_path / "benchmarks.json"
    assert table.load(path) == []
    for measured in (run("first", "sft", "dpo"), run("second", "kto"), run("third", "dpo", "kto")):
        table.save(path, table.merged(table.load(path), measured))
    assert table.load(path) == [run("first", "sft"), run("third", "dpo", "kto")]


def test_memory_of_children_counts() -> None:
    alone = peak_rss()
    code = "x = bytearray(80 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = peak_rss()
        child.communicate(b"\n")
    assert together - alone > 80 << 20


def test_torch_is_not_needed_by_the_driver() -> None:
    code = "import sys, benchmarks.__main__, benchmarks.turns; sys.exit('torch' in sys.modules)"
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)}) == 0


# ---- beside busy processes


def test_settings_of_waiting_threads() -> None:
    assert neighbour.setting("auto") == ("auto", {}) and neighbour.setting("default")[1] == {"GOMP_SPINCOUNT": "300000"}
    both = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    assert neighbour.setting("one=OMP_WAIT_POLICY=passive,OMP_NUM_THREADS=1") == ("one", both)
    for text in ("fast", "x=GOMP_SPINCOUNT", "x=A=1,B="):
        with pytest.raises(argparse.ArgumentTypeError):
            neighbour.setting(text)


def test_each_side_is_measured_beside_each_number_of_neighbours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The neighbours are at work before a side starts, and gone afterwards."""
    alive: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: alive.append(popen(*args, **options)) or alive[-1]
    )

    class Stub(Side):
        def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
            self.busy = sum(process.poll() is None for process in alive)
            self.offset = {"py-ours": 0.0, "py-trl": 10.0}[command[0]] + len(env)

        def __exit__(self, *_: object) -> None: ...

        def read(self) -> dict[str, Any]:
            return {}

        def turn(self, steps: int) -> dict[str, Any]:
            return {"steps": [{"seconds": self.offset + self.busy}] * steps}

    monkeypatch.setattr(neighbour, "Side", Stub)
    row, length = plan.Row("sft", "tiny", "fp32"), plan.Length(1, 2, 3)
    found = neighbour.measure(row, length, {"A": "1"}, [0, 2], {"ours": "py-ours", "trl": "py-trl"}, tmp_path)
    assert found == {"ours": {0: [1.0] * 6, 2: [3.0] * 6}, "peer": {0: [11.0] * 6, 2: [13.0] * 6}}
    assert len(alive) == 4 and all(process.poll() is not None for process in alive)
    alone = neighbour.measure(row, length, {}, [0], {"ours": "py-ours"}, tmp_path)
    assert alone == {"ours": {0: [0.0] * 6}}
    shown = {
        "row": "sft tiny fp32",
        "setting": "auto",
        **{k: {str(n): v for n, v in d.items()} for k, d in found.items()},
    }
    assert neighbour.line(shown, [0, 2]) == "sft tiny fp32  auto  ours 1.000 / 3.000  peer 11.000 / 13.000"
