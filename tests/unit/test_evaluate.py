"""`assent eval` from the command line to the last file, on tiny policies: numbers against transformers' and formulas
written here, continuing, judges with known faults, files of others, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assent.algorithms.sft import train_sft
from assent.cli import main, parse
from assent.config import (
    DataConfig,
    EvalConfig,
    EvalJudgeConfig,
    InitConfig,
    JudgeConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
)
from assent.errors import ConfigError, DataError, ModelError, OutputError, RunFolderError, UserError
from assent.evaluate.answers import Asking
from assent.evaluate.evaluation import evaluate
from assent.evaluate.results import PolicyTable
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.rewards.judge.ask import Answer
from assent.rewards.judge.prompt import CLAIMS, read_prompt
from assent.rewards.judge.source import check_options

PROMPTS = [{"prompt": f"Name {i} colours.", "reference": "red", "kind": "colours"} for i in range(6)]
GOLD = "def score(prompt, answer):\n    return None if not answer else float(len(answer))\n"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def other_model(tokenizer, tmp_path_factory) -> str:
    """Another model of the same tokenizer."""
    config = InitConfig(data="", out="", hidden_size=32, layers=2, heads=4, kv_heads=2, context=512, seed=1)
    return str(write_new_model(tokenizer, random_model(tokenizer, config), tmp_path_factory.mktemp("models") / "other"))


@pytest.fixture(scope="module")
def foreign_model(tmp_path_factory) -> str:
    """A model with another tokenizer."""
    tokenizer = train_tokenizer(("zebra quagga xylophone " * 20,), 300)
    config = InitConfig(data="", out="", hidden_size=16, layers=1, heads=2, kv_heads=1, context=512, seed=2)
    return str(write_new_model(tokenizer, random_model(tokenizer, config), tmp_path_factory.mktemp("models") / "zebra"))


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path, other_model: str) -> EvalConfig:
    """Two policies on six prompts, by a function."""
    (tmp_path / "gold.py").write_text(GOLD)
    return EvalConfig(
        (f"a={tiny_model_dir}", f"b={other_model}"),
        write(tmp_path / "prompts.jsonl", PROMPTS),
        str(tmp_path / "out"),
        scorer=f"{tmp_path / 'gold.py'}:score",
        measures=("reward", "win-rate"),
        precision="fp32",
        sampling=SamplingConfig(max_new_tokens=6),
    )


def refused(config: EvalConfig, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        evaluate(config)
    return str(caught.value)


def answers_of(config: EvalConfig) -> list[dict]:
    return [json.loads(line) for line in (Path(config.out) / "answers.jsonl").read_text().splitlines()]


# ---- the whole way


def test_from_the_command_line_to_the_files(config: EvalConfig, tmp_path: Path, capsys):
    file = write(tmp_path / "theirs.jsonl", [{"prompt": row["prompt"], "response": "red"} for row in PROMPTS[:5]])
    words = [*config.policies, f"theirs={file}", "--prompts", config.prompts, "--scorer", str(config.scorer)]
    words += ["--reference", config.policies[0].partition("=")[2], "--rewards", "right=exact=reference"]
    words += ["--answers", "2", "--precision", "fp32", "--sampling.max_new_tokens", "6"]
    assert main(["eval", *words, "--out", config.out]) == 0
    printed = capsys.readouterr()
    assert "reward/gold" in printed.out and "theirs: 1 of 6 prompts have no answer" in printed.out
    table, rows = PolicyTable.load(Path(config.out) / "evaluation.json"), answers_of(config)
    assert [policy.name for policy in table.policies] == ["a", "b", "theirs"] and table.by == "gold"
    assert len(rows) == 12 + 12 + 5 and {row["kind"] for row in rows} == {"colours"}
    again = parse("eval", [*shlex.split(table.command)[2:], "--out", config.out])[1]
    assert again == parse("eval", [*words, "--out", config.out])[1] and "--out" not in table.command
    for policy in table.policies:
        own = [row for row in rows if row["policy"] == policy.name]
        gold = [row["scores"]["gold"] for row in own if row["scores"]["gold"] is not None]
        assert policy.scores["gold"].mean == pytest.approx(np.mean(gold)) and policy.scores["gold"].n == len(gold)
        assert policy.scores["right"].mean == np.mean([row["response"].strip() == "red" for row in own])
        assert policy.numbers["exact-match"].number.value == policy.scores["right"].mean
    assert table.policies[2].scores["right"].mean == 1 and "kl" in table.policies[2].absent
    b = [row for row in rows if row["policy"] == "b"]
    ratios = [row["log_prob"] - row["reference_log_prob"] for row in b]
    assert table.policies[1].kl.mean == pytest.approx(np.mean(ratios)) and abs(np.mean(ratios)) > 1e-3
    assert table.policies[0].kl.mean == pytest.approx(0, abs=1e-6)
    lines = (Path(config.out) / "evaluation.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(policy.numbers) for policy in table.policies)
    outputs = json.loads((Path(config.out) / "model_outputs" / "b.json").read_text())
    assert [row["instruction"] for row in outputs] == [row["prompt"] for row in PROMPTS]
    assert outputs[0] == {"instruction": "Name 0 colours.", "output": b[0]["response"], "generator": "b"}
    # what was written is read back as answers made elsewhere
    again = replace(
        config,
        policies=(f"back={Path(config.out) / 'model_outputs' / 'b.json'}", f"all={file}"),
        out=str(tmp_path / "back"),
    )
    assert evaluate(again).policies[0].scores["gold"].n <= 6


def test_python_is_the_command_line_and_gives_the_same_bytes(config: EvalConfig, tmp_path: Path):
    evaluate(config)
    words = [*config.policies, "--prompts", config.prompts, "--scorer", str(config.scorer), "--measures", "reward"]
    words += ["win-rate", "--precision", "fp32", "--sampling.max_new_tokens", "6", "--out", str(tmp_path / "two")]
    assert main(["eval", *words]) == 0
    for name in ("evaluation.json", "evaluation.csv", "answers.jsonl", "model_outputs/a.json"):
        assert (tmp_path / "two" / name).read_bytes() == (Path(config.out) / name).read_bytes()


def test_an_interrupted_evaluation_continues_byte_equal(config: EvalConfig, tmp_path: Path, monkeypatch):
    evaluate(config)
    broken, asked, sample = replace(config, out=str(tmp_path / "broken")), [], Asking.sample

    def counted(self, source):
        asked.append(source.name)
        if asked == ["a", "b"]:
            raise KeyboardInterrupt
        return sample(self, source)

    monkeypatch.setattr(Asking, "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(broken)
    assert not (tmp_path / "broken" / "evaluation.json").exists()
    assert "not empty. Continue an evaluation with --resume" in refused(broken, RunFolderError)
    evaluate(replace(broken, resume=True))
    assert asked == ["a", "b", "b"], "the first policy's answers are in the cache"
    for name in ("evaluation.json", "evaluation.csv", "answers.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (Path(config.out) / name).read_bytes()
    evaluate(replace(broken, resume=True, baseline="b"))
    assert asked == ["a", "b", "b"], "nor is anything sampled for other tables"
    evaluate(replace(broken, resume=True, seed=1, policies=config.policies[:1], measures=("reward",)))
    assert asked == ["a", "b", "b", "a"], "another seed is another answer"
    for file in (tmp_path / "broken" / "cache").iterdir():
        file.write_text(file.read_text()[:50])
    evaluate(replace(broken, resume=True))
    assert asked[4:] == ["a", "b"], "what is damaged is sampled again"
    assert (tmp_path / "broken" / "answers.jsonl").read_bytes() == (Path(config.out) / "answers.jsonl").read_bytes()


# ---- likelihood, against transformers


def log_probs(folder: Path, prompt: str, answer: str) -> tuple[float, int, float]:
    """log pi(answer) with its end, by transformers alone: the sum, the tokens, and its own mean loss."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = asked + tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[-100] * len(asked) + ids[len(asked) :]])
    with torch.no_grad():
        loss = float(model(torch.tensor([ids]), labels=labels).loss)
    size = len(ids) - len(asked)
    return -loss * size, size, loss


def test_the_files_own_answers_are_as_likely_as_transformers_says(
    config: EvalConfig, tmp_path: Path, tiny_model_dir: Path
):
    rows = [{"prompt": f"Egg {i}?", "chosen": "Yes, boil it." * (i % 2 + 1), "rejected": f"No {i}."} for i in range(5)]
    asked = replace(config, prompts=write(tmp_path / "pairs.jsonl", rows), reference=config.policies[1][2:])
    asked = replace(asked, measures=(), policies=config.policies[:1])
    found = evaluate(asked).policies[0].numbers
    own = [[log_probs(tiny_model_dir, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in rows]
    anchor = [
        [log_probs(Path(str(asked.reference)), row["prompt"], row[side]) for side in ("chosen", "rejected")]
        for row in rows
    ]
    chosen = [one for one, _ in own]
    perplexity = math.exp(-sum(total for total, *_ in chosen) / sum(size for _, size, _ in chosen))
    assert found["given-perplexity"].number.value == pytest.approx(perplexity, rel=1e-4)
    better = [[log / size**power for log, size, _ in both] for both in own for power in (0, 1)]
    summed, averaged = (np.mean([a > b for a, b in better[start::2]]) for start in (0, 1))
    assert found["preference-accuracy"].number.value == pytest.approx(summed)
    assert found["preference-accuracy-per-token"].number.value == pytest.approx(averaged)
    ratios = [[p[0] - q[0] for p, q in zip(*both, strict=True)] for both in zip(own, anchor, strict=True)]
    assert found["implicit-reward-accuracy"].number.value == pytest.approx(np.mean([a > b for a, b in ratios]))


def test_one_demonstration_has_transformers_perplexity(config: EvalConfig, tmp_path: Path, tiny_model_dir: Path):
    demonstration = {"prompt": "Name three colours.", "completion": "Red, green and blue."}
    asked = replace(config, prompts=write(tmp_path / "demo.jsonl", [demonstration]), policies=config.policies[:1])
    found = evaluate(replace(asked, measures=("given-perplexity",))).policies[0].numbers["given-perplexity"]
    loss = log_probs(tiny_model_dir, *demonstration.values())[2]
    assert found.number.value == pytest.approx(math.exp(loss), rel=1e-4)


def test_multiple_choice_of_truthful_qa(config: EvalConfig, tmp_path: Path, tiny_model_dir: Path):
    one = {"choices": ["Red.", "Boil it.", "Name three colours, isn't it?"], "labels": [1, 0, 0]}
    some = {"choices": ["Red.", "Paris.", "Blue."], "labels": [1, 0, 1]}
    rows = [{"question": f"Colour {i}?", "mc1_targets": one, "mc2_targets": some} for i in range(3)]
    file = write(tmp_path / "truthful.jsonl", rows)
    names = ("mc1", "mc1-per-token", "mc2", "mc2-per-token")
    asked = replace(config, prompts=file, columns={"prompt": "question"}, policies=config.policies[:1], measures=names)
    found = evaluate(asked).policies[0].numbers
    for power, suffix in ((0, ""), (1, "-per-token")):
        ones, shares = [], []
        for row in rows:
            logs = [log_probs(tiny_model_dir, row["question"], text) for text in one["choices"]]
            numbers = [log / size**power for log, size, _ in logs]
            ones.append(numbers[0] > max(numbers[1:]))
            chances = [
                math.exp(log / size**power)
                for log, size, _ in (log_probs(tiny_model_dir, row["question"], text) for text in some["choices"])
            ]
            shares.append((chances[0] + chances[2]) / sum(chances))
        assert found[f"mc1{suffix}"].number.value == np.mean(ones)
        assert found[f"mc2{suffix}"].number.value == pytest.approx(np.mean(shares), rel=1e-3)


# ---- what policies are


def test_policies_of_other_tokenizers_answer_without_kl(config: EvalConfig, foreign_model: str, tmp_path: Path):
    both = (config.policies[0], f"zebra={foreign_model}")
    asked = replace(config, policies=both, reference=config.policies[0][2:], measures=("reward", "kl", "length"))
    ours, zebra = evaluate(asked).policies
    assert ours.kl.n == 6 and zebra.scores["gold"].n > 0 and zebra.length.n == 6
    assert "tokens differ" in zebra.absent["kl"] and "kl" not in zebra.numbers


def test_a_reward_model_reads_sampled_tokens_as_in_training(
    config: EvalConfig, foreign_model: str, scorer_dir: Path, tmp_path: Path
):
    """The same answers from a file are read as text, which is the same for those that ended by themselves or not but
    for the end of those that were cut."""
    asked = replace(config, rewards=(str(scorer_dir),), scorer=None, policies=(config.policies[0], foreign_model))
    table = evaluate(asked)
    assert table.by == "scorer" and [policy.scores["scorer"].n for policy in table.policies] == [6, 6]
    rows = [row for row in answers_of(asked) if row["policy"] == "a"]
    file = write(tmp_path / "a.jsonl", [{"prompt": row["prompt"], "response": row["response"]} for row in rows])
    other = replace(asked, policies=(file,), out=str(tmp_path / "file"), measures=("reward",))
    again = {row["prompt_index"]: row["scores"]["scorer"] for row in (evaluate(other) and answers_of(other))}
    cut = [not row["finished"] for row in rows]
    assert any(cut) and len(again) == 6
    assert all(abs(again[row["prompt_index"]] - row["scores"]["scorer"]) > 1e-4 for row in rows if not row["finished"])


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory) -> Path:
    """A run of two steps on four of the prompts, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": row["prompt"], "completion": "Red."} for row in PROMPTS[:4]]
    file = write(folder / "train.jsonl", rows)
    model, train = ModelConfig(str(tiny_model_dir), precision="fp32"), TrainConfig(2, max_steps=2, save_every=1)
    train_sft(SFTConfig(model, DataConfig(file, max_length=64), str(folder / "sft"), OptimConfig(lr=0.1), train))
    return folder / "sft"


def test_a_run_with_all_its_checkpoints_and_what_it_was_trained_on(config: EvalConfig, run: Path, capsys):
    table = evaluate(replace(config, policies=(str(run),), checkpoints=True, measures=("reward",)))
    steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert [policy.name for policy in table.policies] == ["sft", *(f"sft@{step}" for step in steps)] and steps
    words = "trained on 4 of these 6 prompts (67%)"
    assert all(words in policy.notes[0] for policy in table.policies) and words in capsys.readouterr().out
    final, first, last = table.policies
    assert final.numbers == last.numbers != first.numbers


def test_policies_with_other_templates_each_speak_their_own(config: EvalConfig, tiny_model_dir: Path, tmp_path: Path):
    """The same weights and tokenizer; only what is written around the prompt is another."""
    other = tmp_path / "templated"
    shutil.copytree(tiny_model_dir, other)
    template = "{% for m in messages %}user {{ m['content'] }} assistant{% endfor %}"
    (other / "chat_template.jinja").write_text(template)
    asked = replace(config, policies=(config.policies[0], f"other={other}"), reference=config.policies[0][2:])
    ours, theirs = evaluate(replace(asked, measures=("reward", "kl"))).policies
    assert ours.kl.n == theirs.kl.n == 6 and theirs.kl.mean == pytest.approx(0, abs=1e-6), "read as it was written"
    ids = [json.loads(file.read_text())["prompt_ids"]["0"] for file in (Path(config.out) / "cache").iterdir()]
    assert len(ids) == 2 and ids[0] != ids[1]


def test_empty_answers_are_failures_where_nothing_can_be_measured(config: EvalConfig, tmp_path: Path):
    """Every measure of the table, on a policy that says nothing and one that now and then says nothing."""
    kinds = ("harmful", "harmless")
    prompts = write(tmp_path / "kinds.jsonl", [row | {"kind": kinds[i % 2]} for i, row in enumerate(PROMPTS)])
    texts = {"nothing": [""] * 6, "some": ["red", "", " ", "I cannot help with that.", "red and blue", "red"]}
    files = [
        f"{name}={write(tmp_path / f'{name}.jsonl', rows)}"
        for name, own in texts.items()
        for rows in [[{"prompt": row["prompt"], "response": text} for row, text in zip(PROMPTS, own, strict=True)]]
    ]
    table = evaluate(replace(config, prompts=prompts, policies=tuple(files), measures=()))
    nothing, some = table.policies
    for name in ("exact-match", "plain-match", "rouge-l", "chrf"):
        assert nothing.numbers[name].number.value == 0 and 0 < some.numbers[name].number.value < 100, name
    assert "repetition" in nothing.absent and "self-bleu-across" in nothing.absent
    assert some.numbers["self-bleu-across"].failures == {"it is empty": 2}
    assert nothing.numbers["reward/gold"].failures == {"the scorer has no opinion": 6}
    assert some.numbers["win-rate/gold"].number.value is None and table.verdict(some) == ""
    assert "gives the same answer to 6 of 6 prompts: ''" in nothing.notes


def test_checkpoints_with_the_reference_among_the_policies_give_a_law_or_say_why_not(
    config: EvalConfig, run: Path, tiny_model_dir: Path, capsys
):
    asked = replace(config, policies=(f"start={tiny_model_dir}", str(run)), checkpoints=True, measures=("reward", "kl"))
    table = evaluate(replace(asked, reference=str(tiny_model_dir), within=0.5))
    assert [(p.name, p.run, p.step) for p in table.frontier] == [
        ("start", "start", None),
        ("sft", "sft", 2),
        ("sft@step-000001", "sft", 1),
        ("sft@step-000002", "sft", 2),
    ]
    (law,) = table.laws
    assert law.start == "start, the reference itself" and [p.name for p in law.points] == ["sft@step-000001", "sft"]
    gold = {policy.name: policy.scores["gold"].mean for policy in table.policies}
    assert [p.gain.value for p in law.points] == pytest.approx([gold[p.name] - gold["start"] for p in law.points])
    printed = capsys.readouterr().out
    assert "no law is fitted: a law needs 4 points" in printed and "On the front of KL and gold" in printed
    assert table.within == 0.5 and table.policies[0].needed["reward/gold"].within == 0.5
    alone = evaluate(replace(asked, reference=str(tiny_model_dir), policies=(str(run),), out=f"{config.out}-alone"))
    assert alone.laws[0].start == "" and "none of the policies" in alone.laws[0].fit.alpha.problem


def test_forms_by_option_are_measures_of_their_own(config: EvalConfig, tmp_path: Path):
    texts = ['{"a": 1}', '{"b": 1}', "the answer is \\boxed{4}", "yes = no", "", "[]"]
    rows = [{"prompt": row["prompt"], "response": text} for row, text in zip(PROMPTS, texts, strict=True)]
    asked = replace(config, policies=(write(tmp_path / "theirs.jsonl", rows),), scorer=None, measures=("characters",))
    forms = (r"boxed=\\boxed\{.+\}", "equation=yes = no", "json-like=^[{[]")
    found = evaluate(replace(asked, form=forms, json_keys=("a",))).policies[0].numbers
    shares = {"boxed": 1, "equation": 1, "json-like": 3, "json": 1}
    assert {name: found[name].number.value for name in shares} == pytest.approx({k: v / 6 for k, v in shares.items()})
    words = [*asked.policies, "--prompts", config.prompts, "--measures", "characters", "--out", str(tmp_path / "cli")]
    words += ["--precision", "fp32", "--sampling.max_new_tokens", "6"]
    assert main(["eval", *words, "--form", *forms, "--json_keys", "a"]) == 0
    assert (tmp_path / "cli" / "evaluation.json").read_bytes() == (Path(config.out) / "evaluation.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": ("boxed",)}, r"--form boxed: expected NAME=REGEX"),
        ({"form": ("Boxed=x",)}, r"--form Boxed=x: expected NAME=REGEX"),
        ({"form": ("boxed=",)}, r"expected NAME=REGEX"),
        ({"form": ("a=(",)}, r"--form a: '\(' is no pattern of Python's re: missing \), unterminated subpattern"),
        ({"form": ("kl=x",)}, r"already a measure 'kl'"),
        ({"form": ("pass@2=x",)}, r"expected NAME=REGEX"),
        ({"form": ("a=x", "a=y")}, r"already a measure 'a'"),
        ({"json_keys": ("a", "a")}, r"--json_keys: expected keys, each once"),
        ({"json_keys": ("",)}, r"--json_keys: expected keys"),
    ],
)
def test_forms_that_are_none_are_refused_before_work(config: EvalConfig, options: dict, words: str):
    assert re.search(words, refused(replace(config, **options)))
    assert not (Path(config.out) / "evaluation.json").exists()


def test_prompts_without_room_are_failures(config: EvalConfig, tmp_path: Path):
    rows = [*PROMPTS[:2], {"prompt": "Name three colours. " * 40, "reference": "red"}]
    asked = replace(config, prompts=write(tmp_path / "long.jsonl", rows), max_length=64)
    found = evaluate(asked).policies[0].numbers["reward/gold"]
    assert found.failures == {"the prompt leaves no room for 6 tokens": 1} and found.number.n <= 2


def test_kl_is_left_out_where_answers_are_no_samples(config: EvalConfig):
    greedy = replace(config, sampling=SamplingConfig(max_new_tokens=3, temperature=0.0), measures=("kl", "reward"))
    policy = evaluate(replace(greedy, reference=config.policies[0][2:]))
    assert "unbiased" in policy.left_out["kl"]


# ---- judges and labels


class Fake:
    """A judge that says what `say` does of the two texts that it is shown."""

    who, identity = "fake", {"fake": 2}
    say: Callable[[list[str]], str] = staticmethod(lambda texts: "[[A]]")

    def __init__(self, *_, **__) -> None:
        pass

    def ask(self, questions, keep, deadline):
        found = []
        for number, question in enumerate(questions):
            text = question.messages[-1].content
            answer = Answer(self.say(re.findall(r"<answer(?: [A-D])? \w{12}>\n(.*?)\n</answer", text, re.S)), "stop")
            keep(number, answer)
            found.append(answer)
        return found


@pytest.fixture
def judged(config: EvalConfig, tmp_path: Path, monkeypatch) -> Callable[..., PolicyTable]:
    """The evaluation of two files by a judge that says this."""
    monkeypatch.setattr("assent.rewards.judge.build.OpenAIJudge", Fake)
    files = [
        f"{name}={write(tmp_path / f'{name}.jsonl', [{'prompt': row['prompt'], 'response': text} for row in PROMPTS])}"
        for name, text in {"short": "Red.", "long": "Red. Green. Blue."}.items()
    ]

    def evaluated(say: Callable[[list[str]], str], beside: tuple[str, ...] = (), **judge) -> PolicyTable:
        monkeypatch.setattr(Fake, "say", staticmethod(say))
        place = tmp_path / f"place-{len(list(tmp_path.iterdir()))}"
        measures = ("reward", "win-rate") if judge.get("prompt") == "rating" else ("win-rate",)
        settings = EvalJudgeConfig(**{"cache": str(place / "verdicts"), "model": "m"} | judge)
        asked = replace(config, policies=tuple(files), scorer=None, rewards=(*beside, "openai=http://localhost:1"))
        return evaluate(replace(asked, out=str(place / "out"), judge=settings, measures=measures))

    return evaluated


def longer(texts: list[str]) -> str:
    first, second = map(len, texts)
    return "[[C]]" if first == second else "[[A]]" if first > second else "[[B]]"


def test_a_judge_that_always_says_first_is_exposed(judged):
    table = judged(lambda texts: "[[A]]", contradiction="leave_out")
    found = table.policies[1].numbers["win-rate/judge"]
    assert found.number.value is None and found.failures == {"the judge contradicts itself when the order changes": 6}
    assert table.probes["judge/consistency"].number.value == 0
    assert table.probes["judge/first-shown-wins"].number.value == 1 and table.verdict(table.policies[1]) == ""
    tied = judged(lambda texts: "[[A]]")
    found = tied.policies[1]
    assert found.numbers["win-rate/judge"].number.value == 0.5 and found.outcomes["judge"].ties == 6
    assert tied.probes["judge/consistency"].number.value == 0


def test_a_judge_that_loves_length_is_exposed_by_its_probes(judged):
    table = judged(longer)
    long = table.policies[1]
    assert table.by == "judge" and long.numbers["win-rate/judge"].number.value == 1
    assert table.probes["judge/null-answer"].number.value == 1, "an answer that says nothing wins"
    assert table.probes["judge/longer"].number.value == 1
    assert table.probes["judge/consistency"].number.value == 1
    turned = judged(lambda texts: longer(texts[::-1]))
    assert turned.policies[1].numbers["win-rate/judge"].number.value == 0
    assert turned.probes["judge/null-answer"].number.value == 0


def test_unreadable_verdicts_are_failures_and_never_ties(judged):
    table = judged(lambda texts: "I would rather not say.")
    found = table.policies[1].numbers["win-rate/judge"]
    assert found.number.value is None and sum(found.failures.values()) == 6
    assert table.policies[1].outcomes["judge"].ties == 0 and table.probes["judge/unreadable"].number.value == 1


def test_a_rating_judge_is_a_score(judged):
    table = judged(lambda texts: f"[[{min(10, len(texts[0]) // 2)}]]", prompt="rating")
    assert [policy.scores["judge"].mean for policy in table.policies] == [2, 8]
    assert table.policies[1].numbers["win-rate/judge"].number.value == 1 and not table.probes


def test_a_judge_beside_other_sources_keeps_its_options(judged):
    """Options of judges are no matter of what stands beside them."""
    table = judged(longer, beside=("right=exact=reference",))
    assert table.policies[1].numbers.keys() == {"win-rate/right", "win-rate/judge"}


def test_a_prompt_for_claims_is_no_reward():
    with pytest.raises(ConfigError, match="asks for claims, which are no reward"):
        check_options(read_prompt(CLAIMS), JudgeConfig(prompt=CLAIMS))


def test_verdicts_of_people_in_alpaca_evals_shape(config: EvalConfig, tmp_path: Path):
    files = {}
    for name in ("x", "y"):
        texts = {row["prompt"]: f"{name} {i}" for i, row in enumerate(PROMPTS)}
        rows = [{"instruction": prompt, "output": text, "generator": name} for prompt, text in texts.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        files[name] = str(tmp_path / f"{name}.json")
    preferences = [1, 2, 1.5, 0, None]
    labels = [
        {"instruction": f"Name {i} colours.", "output_1": f"x {i}", "output_2": f"y {i}", "preference": preference}
        for i, preference in enumerate(preferences)
    ]
    labels[1] |= {"output_1": "y 1", "output_2": "x 1"}  # the same pair the other way round: x is preferred
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    asked = replace(
        config, policies=tuple(files.values()), scorer=None, labels=str(tmp_path / "labels.json"), measures=()
    )
    x, y = evaluate(asked).policies
    found = y.numbers["win-rate/labels"]
    assert found.number.value == pytest.approx((0 + 0 + 0.5 + 0.5) / 4) and found.number.n == 4
    assert found.failures == {"no preference in the labels": 1, "nobody labelled this comparison": 1}
    assert (y.outcomes["labels"].wins, y.outcomes["labels"].ties, y.outcomes["labels"].losses) == (0, 2, 2)
    turned = evaluate(replace(asked, baseline="y", out=str(tmp_path / "turned"))).policies[0]
    assert turned.numbers["win-rate/labels"].number.value == pytest.approx(0.75)


def test_results_of_lm_evaluation_harness_stand_in_the_table(config: EvalConfig, tmp_path: Path, capsys):
    results = {
        "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.05, "f1,strict": 0.5}},
        "n-samples": {"arc_easy": {"original": 100, "effective": 80}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    table = evaluate(replace(config, results=(f"b={tmp_path / 'results.json'}",), policies=config.policies))
    found = table.policies[1].numbers
    assert found["harness/arc_easy.acc"].number.value == 0.25 and found["harness/arc_easy.acc"].number.n == 80
    assert found["harness/arc_easy.acc"].number.low == pytest.approx(0.25 - 1.959964 * 0.05)
    assert found["harness/arc_easy.f1.strict"].number.low is None
    assert "harness/arc_easy.acc" in capsys.readouterr().out


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policies": ("A", "A")}, ConfigError, "two are called 'tiny'. Name them: NAME=PATH."),
        ({"policies": ("nowhere/at/all",)}, ModelError, "POLICY nowhere/at/all:"),
        ({"policies": ("TMP/none.jsonl",)}, DataError, "none.jsonl"),
        ({"policies": ("SCORER", "A")}, ModelError, "reward model"),
        ({"baseline": "c"}, ConfigError, "--baseline c: no policy is called so."),
        ({"checkpoints": True}, ConfigError, "none of the policies is a run folder with checkpoints"),
        ({"prompts": "TMP/text.jsonl"}, DataError, "no row has a prompt to answer"),
        ({"prompts": "TMP/none.jsonl"}, DataError, "none.jsonl"),
        ({"prompts": "TMP/odd.jsonl"}, DataError, "odd.jsonl:1: column 'reference': expected a text, a number"),
        ({"prompts": "TMP/choices.jsonl"}, DataError, "column 'mc1_targets': expected choices and labels"),
        ({"kind": "colour"}, ConfigError, "--kind colour: no row of"),
        ({"measures": ("rewrd",)}, ConfigError, "--measures: there is no 'rewrd'. Perhaps you meant 'reward'."),
        ({"measures": ("kl",)}, ConfigError, "--measures kl needs a reference"),
        ({"measures": ("chrf",), "prompts": "TMP/bare.jsonl"}, ConfigError, "--measures chrf needs right answers in"),
        ({"measures": ("mc1",)}, ConfigError, "--measures mc1 needs choices in the prompt file"),
        ({"measures": ("self-bleu",)}, ConfigError, "--measures self-bleu needs two or more answers"),
        ({"rewards": ("exact=reference", "exact=reference")}, ConfigError, "two sources are called 'exact'"),
        ({"rewards": ("exact=nothing",)}, DataError, "there is no such column"),
        ({"rewards": ("TMP/gold.py:nothing",)}, ConfigError, "has no function 'nothing'"),
        ({"rewards": ("openai=http://localhost:1",), "judge": {"prompt": "four-way"}}, ConfigError, "more than"),
        (
            {"rewards": ("openai=http://localhost:1",), "judge": EvalJudgeConfig(model="m", rule="bradley_terry")},
            ConfigError,
            "--judge.rule bradley_terry is about groups",
        ),
        ({"labels": "TMP/other.jsonl"}, DataError, "none of its 1 verdicts is about an answer"),
        ({"labels": "TMP/prompts.jsonl"}, DataError, "expected the columns instruction, output_1, output_2"),
        ({"labels": "TMP/seven.jsonl"}, DataError, "preference is a number from 1 to 2, or 0 for a tie; got 7"),
        ({"results": ("c=TMP/prompts.jsonl",)}, ConfigError, "the name of a policy or of rewards (a, b, gold)"),
        ({"results": ("a=TMP/prompts.jsonl",)}, DataError, "cannot be read as JSON"),
        ({"policies": ("f=TMP/strange.jsonl",)}, DataError, "1 of its rows answer no prompt of"),
        ({"policies": ("f=TMP/prompts.jsonl",)}, DataError, "it has no answer. Expected one of the columns response"),
        ({"policies": ("f=TMP/number.jsonl",)}, DataError, "number.jsonl:1: response: expected a text; got int"),
        ({"policies": ("f=TMP/null.jsonl", "g=TMP/good.jsonl")}, UserError, "Policy 'f' has no answers to evaluate"),
        ({"policies": ("f=TMP/good.jsonl",), "reference": "A", "measures": ()}, ConfigError, "are files of answers"),
        ({"reference": "nowhere/at/all"}, ModelError, "nowhere/at/all"),
    ],
)  # fmt: skip
def test_bad_input(config: EvalConfig, tmp_path: Path, scorer_dir: Path, monkeypatch, changes, error, message):
    asked: list[str] = []
    monkeypatch.setattr(Asking, "sample", lambda self, source: asked.append(source.name))
    write(tmp_path / "text.jsonl", [{"text": "An egg."}])
    write(tmp_path / "bare.jsonl", [{"prompt": "a"}])
    write(tmp_path / "odd.jsonl", [{"prompt": "a", "reference": {"b": 1}}])
    write(tmp_path / "choices.jsonl", [{"prompt": "a", "mc1_targets": {"choices": ["b"], "labels": [1, 0]}}])
    verdict = {"instruction": "Name 0 colours.", "output_1": "q", "output_2": "r"}
    write(tmp_path / "other.jsonl", [verdict | {"preference": 1}])
    write(tmp_path / "seven.jsonl", [verdict | {"preference": 7}])
    write(tmp_path / "strange.jsonl", [{"prompt": "Who?", "response": "I."}])
    for name, value in {"number": 3, "null": None, "good": "red"}.items():
        write(tmp_path / f"{name}.jsonl", [{"prompt": "Name 0 colours.", "response": value}])
    places = {"TMP": str(tmp_path), "SCORER": str(scorer_dir), "A": config.policies[0][2:]}

    def placed(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        for name, place in places.items():
            if isinstance(value, str) and re.search(rf"\b{name}\b", value):
                return re.sub(rf"\b{name}\b", place, value)
        return value

    bad = replace(config, **{name: placed(value) for name, value in changes.items()})
    if "labels" in changes:
        files = [write(tmp_path / f"{n}.jsonl", [{"prompt": "Name 0 colours.", "response": n}]) for n in "ab"]
        bad = replace(bad, policies=tuple(files))
    assert message in refused(bad, error)
    assert not asked, "before anything is sampled"
    assert not (Path(config.out) / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [("return float('nan')", "gave nan for"), ("return 'good'", "gave 'good'"), ("return {}[1]", "KeyError")],
)  # fmt: skip
def test_scorers_are_tried_before_anything_is_sampled(config: EvalConfig, tmp_path: Path, monkeypatch, body, message):
    monkeypatch.setattr(Asking, "sample", lambda self, source: pytest.fail("sampled"))
    (tmp_path / "gold.py").write_text(f"def score(prompt, answer):\n    {body}\n")
    assert message in refused(config, UserError)


def test_a_folder_of_other_things_is_left_alone(config: EvalConfig, tmp_path: Path):
    out = Path(config.out)
    out.mkdir()
    (out / "photo.jpg").write_text("mine")
    assert "not empty" in refused(config, RunFolderError)
    assert "no earlier evaluation is in" in refused(replace(config, resume=True), RunFolderError)
    (out / "evaluation.json").write_text("[1]")
    assert "not an evaluation table" in refused(replace(config, resume=True), DataError)
    (out / "evaluation.json").unlink()
    (out / "cache").mkdir()
    (out / "answers.jsonl").mkdir()
    assert "answers.jsonl cannot be written: it is a folder" in refused(replace(config, resume=True), OutputError)
    assert main(["eval", "x", "--prompts", "p", "--out", str(out)]) == 2
