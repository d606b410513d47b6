from __future__ import annotations

import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from assent.config import InitConfig
from assent.errors import ConfigError, DataError, RunFolderError
from assent.models.init import init_model, random_model, train_tokenizer, write_new_model

TEXTS = ["The capital of France is Paris.", "An egg boils in seven minutes.", "Is the egg from Paris?"] * 5


def config(**changes) -> InitConfig:
    return InitConfig(**{"data": "", "out": "", "hidden_size": 32, "layers": 2, "context": 128, **changes})


@pytest.mark.parametrize("text", ["", " two  spaces ", "\n\n\ttab\r\n", "naïve 猫 😊 \u200b", "\x00\x7f"])
def test_any_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_and_template(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 2, None)
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " U\n"},
        {"role": "assistant", "content": "A"},
    ]
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U\n<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True) == prompt
    assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + "A<|im_end|>\n"
    marked = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    trained = [i for i, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(trained) == "A<|im_end|>"


def test_vocabulary_is_learnt_and_bounded(tokenizer, caplog):
    assert 259 < len(tokenizer) <= 400
    assert len(tokenizer("The capital of France")["input_ids"]) < len("The capital of France") / 2
    small = train_tokenizer(TEXTS, 4000)
    assert len(small) < 4000
    assert "less than the 4000 asked for" in caplog.text
    with pytest.raises(ConfigError, match="--vocab_size 100 .* 259"):
        train_tokenizer(TEXTS, 100)


def test_same_text_same_tokenizer_in_every_process(children, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(
        "from assent.models.init import train_tokenizer\n"
        f"print(hash('egg'), train_tokenizer({TEXTS!r}, 300).backend_tokenizer.to_str())"
    )
    assert children.wait(children.ask(program=[str(file)], log=str(tmp_path / "said"))) == 0
    hashed, _, theirs = (tmp_path / "said").read_text().strip().partition(" ")
    assert int(hashed) != hash("egg") or "PYTHONHASHSEED" in os.environ, "of another interpreter"
    assert theirs == train_tokenizer(TEXTS, 300).backend_tokenizer.to_str()


def test_weights_depend_on_the_seed_alone(tokenizer):
    set_seed(1)
    before = torch.get_rng_state()
    first = random_model(tokenizer, config(seed=3)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    set_seed(2)
    second = random_model(tokenizer, config(seed=3)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = random_model(tokenizer, config(seed=4)).state_dict()
    assert not torch.equal(first["model.embed_tokens.weight"], third["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "changes, flag",
    [({"hidden_size": 30}, "--hidden_size 30"), ({"heads": 4, "kv_heads": 3}, "--kv_heads 3"), ({"heads": 32}, "32")],
)
def test_impossible_sizes_name_the_flag(tokenizer, changes, flag):
    with pytest.raises(ConfigError, match=flag):
        random_model(tokenizer, config(**changes))


def test_folder_loads_and_gives_the_same_logits(tokenizer, tmp_path):
    model = random_model(tokenizer, config())
    out = write_new_model(tokenizer, model, tmp_path / "a" / "model")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model"]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([[1, 30, 40, 2]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = AutoTokenizer.from_pretrained(out)
    assert again.chat_template == tokenizer.chat_template
    assert again("An egg.<|im_end|>")["input_ids"] == tokenizer("An egg.<|im_end|>")["input_ids"]
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<|pad|>")


def test_a_folder_in_use_is_refused_and_kept(tokenizer, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        write_new_model(tokenizer, random_model(tokenizer, config()), tmp_path)
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        init_model(config(out=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_an_interrupted_write_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    model = random_model(tokenizer, config())
    monkeypatch.setattr(model, "save_pretrained", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_new_model(tokenizer, model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_init_from_a_file(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Where is the cat?", "completion": "The cat is on the mat."}) + "\n")
    out = init_model(config(data=str(data), out=str(tmp_path / "model"), vocab_size=300))
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"
    (tmp_path / "empty").mkdir()
    data.write_text("")
    with pytest.raises(DataError):
        init_model(config(data=str(data), out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
