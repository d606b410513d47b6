"""What is saved: the dtype and configuration that came in, ends that others stop at, and numbers that are read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from assent.algorithms.sft import train_sft
from assent.config import DataConfig, LoraConfig, ModelConfig, SFTConfig, TrainConfig
from assent.data.chat import Chat
from assent.errors import ModelError
from assent.models import readback
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer
from assent.models.readback import own_numbers, read_back
from assent.models.saving import generation_config, save_model, stop_ids
from assent.models.shared_ids import check_shared_ids

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def policy_of(folder: Path, **options):
    return load_policy(ModelConfig(str(folder), precision="fp32", **options), max_length=64)


def in_bf16(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    return target


# ---- dtype


@pytest.mark.parametrize(
    ("asked", "want"),
    [("auto", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_folders_are_written_as_they_came_or_as_asked(
    asked: str, want: torch.dtype, tiny_model_dir: Path, tokenizer, tmp_path: Path
) -> None:
    policy = policy_of(in_bf16(tiny_model_dir, tmp_path / "bf16"))
    save_model(policy, tokenizer, tmp_path / "out", dtype=asked)
    assert {x.dtype for x in stored(tmp_path / "out").values()} == {want}
    assert "lm_head.weight" not in stored(tmp_path / "out"), "tied weights are stored once"
    assert read(tmp_path / "out" / "config.json")["dtype"] == str(want).removeprefix("torch.")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == want
    assert {p.dtype for p in policy.parameters()} == {torch.float32}, "the masters stay"


def test_without_a_recorded_dtype_the_weights_tell(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    folder = in_bf16(tiny_model_dir, tmp_path / "bf16")
    config = read(folder / "config.json")
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    save_model(policy_of(folder), tokenizer, tmp_path / "out")
    assert {x.dtype for x in stored(tmp_path / "out").values()} == {torch.bfloat16}


def test_adapters_and_merged_weights_have_the_dtype(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    policy = policy_of(in_bf16(tiny_model_dir, tmp_path / "bf16"), lora=LoraConfig(rank=2))
    save_model(policy, tokenizer, tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / "adapter"):
        assert {x.dtype for x in stored(folder).values()} == {torch.bfloat16}


# ---- configuration


def test_the_configuration_is_the_one_that_came(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "in"))
    edit(folder / "config.json", attention_dropout=0.25, rms_norm_eps=1e-4, note="mine")
    policy = policy_of(folder, activation_checkpointing=True)
    save_model(policy, tokenizer, tmp_path / "out")
    before, after = read(folder / "config.json"), read(tmp_path / "out" / "config.json")
    free = {"dtype", "transformers_version"}
    assert {k: v for k, v in before.items() if k not in free} == {k: v for k, v in after.items() if k not in free}
    assert policy.plain.config.attention_dropout == 0.25


def test_a_generation_config_that_transformers_would_not_write(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """Sampling options beside greedy decoding, as many published folders have them."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "in"))
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    save_model(policy_of(folder), tokenizer, tmp_path / "out")
    after = read(tmp_path / "out" / "generation_config.json")
    assert after["temperature"] == 0.6 and after["eos_token_id"] == tokenizer.eos_token_id


# ---- where answers end


@pytest.fixture
def base(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A base model: its EOS ends a document, and no template is known."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end_of_text|>", "<|eom|>"]})
    tokenizer.eos_token, tokenizer.pad_token = "<|end_of_text|>", "<|end_of_text|>"
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    return folder


def test_a_base_model_taught_chatml_ends_at_both(base: Path, tmp_path: Path) -> None:
    """Trained with a template whose end is not the base's: transformers' own generate stops there."""
    template, rows = tmp_path / "chatml.jinja", tmp_path / "rows.jsonl"
    template.write_text(CHATML)
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    model = ModelConfig(str(base), precision="fp32", chat_template=str(template))
    data, train = DataConfig(str(rows), max_length=64), TrainConfig(batch_size=4, max_steps=1)
    out = train_sft(SFTConfig(model=model, data=data, out=str(tmp_path / "run"), train=train)).model
    tokenizer = AutoTokenizer.from_pretrained(out)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|end_of_text|>", "<|im_end|>")]
    assert read(out / "generation_config.json")["eos_token_id"] == ends
    assert read(out / "config.json")["eos_token_id"] == ends
    assert read(out / "generation_config.json")["pad_token_id"] == tokenizer.pad_token_id

    taught = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():  # it says nothing but <|im_end|>
        taught.get_output_embeddings().weight.zero_()
    bias = torch.zeros(len(tokenizer))
    bias[ends[1]] = 1.0
    taught.get_output_embeddings().register_forward_hook(lambda *call: call[-1] + bias)
    said = taught.generate(torch.tensor([[3, 4]]), max_new_tokens=9, do_sample=False)
    assert said[0].tolist() == [3, 4, ends[1]]


def test_stops_are_the_union(base: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(str(base)))
    tokenizer.chat_template = CHATML
    chat = Chat(tokenizer)
    eos, turn, other = (tokenizer.convert_tokens_to_ids(t) for t in ("<|end_of_text|>", "<|im_end|>", "<|eom|>"))
    assert stop_ids(chat, None) == {eos, turn}
    assert stop_ids(chat, GenerationConfig(eos_token_id=[other, eos])) == {eos, turn, other}
    assert stop_ids(chat, GenerationConfig(eos_token_id=other)) == {eos, turn, other}
    letter = tokenizer.convert_tokens_to_ids("a")
    assert stop_ids(chat, GenerationConfig(eos_token_id=[letter])) == {eos, turn, letter}
    for i, ends in ((letter, {eos, turn}), (other, {eos, turn, other})):  # the default of a class may be any token
        assert stop_ids(chat, GenerationConfig.from_model_config(LlamaConfig(eos_token_id=i))) == ends
    assert generation_config(str(base)).eos_token_id == eos


@pytest.mark.parametrize("place", ["training", "probe", "evaluation", "generate"])
def test_every_engine_stops_at_what_the_generation_config_names(place: str, base: Path, monkeypatch) -> None:
    """The engine that each part of the program builds is asked for its ends."""
    extra = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("<|eom|>")
    edit(base / "generation_config.json", eos_token_id=[extra])
    seen: list[set[int]] = []

    class Found(Exception):
        pass

    def engine(*arguments, **_):
        seen.append(set(next(a for a in arguments if isinstance(a, frozenset))))
        raise Found

    made = "algorithms.online.sampling.engine_of" if place == "training" else "rollout.build.TorchEngine"
    monkeypatch.setattr(f"assent.{made}", engine)
    with pytest.raises(Found):
        _build(place, base)
    assert extra in seen[0]


def _build(place: str, base: Path) -> None:
    from types import SimpleNamespace

    from assent.algorithms import probe
    from assent.algorithms.online import sampling
    from assent.algorithms.online.models import Models
    from assent.config import EngineConfig, EvalConfig, SamplingConfig
    from assent.data.records import Example, Message
    from assent.distributed import World
    from assent.evaluate.answers import Asking
    from assent.evaluate.policies import PolicySource
    from assent.evaluate.prompts import PromptSet
    from assent.measures.answers import Prompts
    from assent.rollout import answering

    prompts = [Example(prompt=(Message("user", "a"),))]
    policy, talk = policy_of(base), Chat(load_tokenizer(ModelConfig(str(base))))
    world = SimpleNamespace(rank=0, size=1)
    data = SimpleNamespace(max_length=64)
    session = SimpleNamespace(chat=talk, tokenizer=talk.tokenizer, world=world, config=SimpleNamespace(data=data))
    if place == "training":
        config = SimpleNamespace(
            rollout=SimpleNamespace(ahead=False), engine=EngineConfig(), sampling=SamplingConfig(),
            data=SimpleNamespace(max_length=64),
        )  # fmt: skip
        sampling.sampler_of(session, Models(policy, None, None), config, None)
    elif place == "probe":
        made = probe.Probe.__new__(probe.Probe)
        made.session, made.policy, made.prompts, made.unused = session, policy, [None], []
        made()
    elif place == "evaluation":
        sampling, alone = SamplingConfig(max_new_tokens=2), World(0, 1, 0, torch.device("cpu"))
        config = EvalConfig((str(base),), "prompts.jsonl", "out", sampling=sampling)
        asked = PromptSet("prompts.jsonl", tuple(prompts), Prompts(("a",), ("a",), ((),), ("",)), (), {})
        Asking(config, asked, alone).sample(PolicySource("base", str(base)))
    else:
        alone = World(0, 1, 0, torch.device("cpu"))
        answering.opened(ModelConfig(str(base), precision="fp32"), EngineConfig(), SamplingConfig(), alone)


# ---- reading back


def test_reading_back_a_policy_and_a_reward_model(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    for name, model in {
        "policy": policy_of(tiny_model_dir),
        "flat": policy_of(tiny_model_dir, layout="flat"),
        "reward": load_score_model(ModelConfig(str(tiny_model_dir), precision="bf16"), tokenizer, max_length=64),
    }.items():
        own = own_numbers(model, tokenizer)
        found = read_back(model, tokenizer, tmp_path / name, save_model(model, tokenizer, tmp_path / name), own)
        assert not found.beware and "the same numbers as in training" in found.words
        assert model.precision in ("fp32", "bf16") and model.model.training


def test_reading_back_finds_wrong_weights(tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    policy = policy_of(tiny_model_dir)
    own = own_numbers(policy, tokenizer)
    written = save_model(policy, tokenizer, tmp_path)
    weights = stored(tmp_path)
    weights["model.norm.weight"] += 0.01
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="transformers reads other weights than were trained: model.norm.weight"):
        read_back(policy, tokenizer, tmp_path, written, own)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(readback, "LIMIT", 0)
    with pytest.raises(ModelError, match="not those that its configuration asks for"):
        read_back(policy, tokenizer, tmp_path, written, own)


def test_large_models_are_checked_by_name(tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    policy = policy_of(tiny_model_dir)
    own = own_numbers(policy, tokenizer)
    written = save_model(policy, tokenizer, tmp_path)
    monkeypatch.setattr(readback, "LIMIT", 0)
    assert "Names and shapes" in read_back(policy, tokenizer, tmp_path, written, own).words
    edit(tmp_path / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="not those that its configuration asks for"):
        read_back(policy, tokenizer, tmp_path, written, own)


def test_reading_back_tells_of_other_numbers(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    policy = policy_of(tiny_model_dir)
    own = own_numbers(policy, tokenizer) + 0.5
    found = read_back(policy, tokenizer, tmp_path, save_model(policy, tokenizer, tmp_path), own)
    assert found.beware and "differ from those in training by up to 0.5" in found.words


def test_a_reward_model_that_others_read_elsewhere_is_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Where answers end with the padding token, transformers reads the token before."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "in"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    scorer = load_score_model(ModelConfig(str(folder), precision="fp32"), tokenizer, max_length=64)
    scorer.model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    own = own_numbers(scorer, tokenizer)
    assert read_back(scorer, tokenizer, tmp_path / "out", save_model(scorer, tokenizer, tmp_path / "out"), own).beware


# ---- other vocabularies


def check(path: Path, tokenizer) -> None:
    check_shared_ids("--reference.path", str(path), tokenizer, revision=None, trust_remote_code=False)


def test_the_same_vocabulary_passes_whatever_the_template(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    check(tiny_model_dir, tokenizer)
    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    bare = AutoTokenizer.from_pretrained(other)
    bare.chat_template, bare.eos_token = None, "<|im_start|>"
    bare.save_pretrained(other)
    check(other, tokenizer)


def test_other_vocabularies_are_refused(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    from assent.models.init import train_tokenizer

    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    train_tokenizer(["entirely different words, zebra xylophone quartz"] * 9, 300).save_pretrained(other)
    with pytest.raises(ModelError, match=r"--reference.path .* has another vocabulary .*: \d+ of \d+ tokens differ \("):
        check(other, tokenizer)
    for file in other.glob("token*"):
        file.unlink()
    check(other, tokenizer)  # without a tokenizer: enough rows
    larger = AutoTokenizer.from_pretrained(tiny_model_dir)
    larger.add_tokens(["zebra"])
    with pytest.raises(ModelError, match="it knows ids up to 399, the tokenizer has ids up to 400"):
        check(other, larger)
    with pytest.raises(ModelError, match="'zebra' is 400 here, none there"):
        check(tiny_model_dir, larger)


def test_text_that_is_split_otherwise_is_refused(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    content = read(other / "tokenizer.json")
    content["model"]["merges"] = content["model"]["merges"][:10]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="text is split into them differently"):
        check(other, tokenizer)


@pytest.mark.parametrize("option", ["--reference.path", "--kl.reference", "--rewards.model"])
def test_a_run_with_another_vocabulary_ends_before_its_first_step(
    option: str, tiny_model_dir: Path, tokenizer, tmp_path: Path, capsys
) -> None:
    from assent import cli
    from assent.models.init import train_tokenizer

    other = tmp_path / "other"
    words = train_tokenizer(["entirely different words, zebra xylophone quartz"] * 9, 300)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    model.save_pretrained(other)
    words.save_pretrained(other)
    if option == "--rewards.model":
        scorer = load_score_model(ModelConfig(str(other), precision="fp32"), words, max_length=64)
        save_model(scorer, words, tmp_path / "reward")
        other = tmp_path / "reward"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    command = ["dpo"] if option == "--reference.path" else ["ppo", "--sampling.max_new_tokens", "4"]
    extra = ["--critic.start", "reward"] if option == "--rewards.model" else []
    if option == "--kl.reference":
        extra = ["--rewards.rules", "format=boxed", "--kl.coef", "0.1", "--critic.start", "policy"]
    shared = ["--model.path", str(tiny_model_dir), "--data.train", str(rows), "--data.max_length", "64"]
    assert cli.main([*command, option, str(other), *extra, *shared, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "has another vocabulary than the model that is trained" in error and str(other) in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_numbers_of_the_sample_do_not_touch_random_state(tiny_model_dir: Path, tokenizer) -> None:
    policy = policy_of(tiny_model_dir)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    own_numbers(policy, tokenizer)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
