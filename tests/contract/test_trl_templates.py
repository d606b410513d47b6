"""Public chat templates on a tokenizer with their control tokens: each conversation has exactly the ids that the
template gives it, or is refused for a known reason; the trained spans agree with the markers of training templates."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError, ToolCall
from assent.data.turns import choose_turns

trl = pytest.importorskip("trl")

FOLDER = Path(trl.__file__).parent / "chat_templates"
TOKEN = re.compile(
    r"<\|[^|<>{}' ]+\|>|<｜[^｜<>]+｜>|</?[a-z_]+>|\[/?INST\]|\[gMASK\]|<\|[a-z_\"]+>|<[a-z_]+\|>"  # <|x|> <x> [X] <x|>
)
ENDS = ["<|im_end|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<turn|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>",
        "<|eot_id|>", "<|eot|>"]  # fmt: skip
MARKUP = re.compile("think|tool_|arg_|channel|function|parameter")

ASKED, AGAIN = Message("user", "What is the capital of France?"), Message("user", "And of Italy?")
ANSWER, SECOND = Message("assistant", "It is Paris, of course."), Message("assistant", "Rome it is.")
THOUGHT = Message("assistant", "It is Paris.", reasoning="Let me recall France.")
INLINE = Message("assistant", "<think>\nLet me recall France.\n</think>\n\nIt is Paris.")
CALL = Message(
    "assistant", "", tool_calls=(ToolCall("get_weather", '{"city": "Paris", "days": 3}', "abcdefghi"),)
)  # fmt: skip
RESULT = Message("tool", "Sunny and warm.", name="get_weather", tool_call_id="abcdefghi")
TOOLS = (
    '[{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string", "description": "Which city."}, '
    '"days": {"type": "integer", "description": "How many."}}, "required": ["city"]}}}]'
)


def row(prompt, *answer, **more) -> Example:
    return Example(tuple(prompt), (Response(answer),), **more)


THOUGHTS = row([ASKED], THOUGHT, AGAIN, Message("assistant", "Rome.", reasoning="Now Italy."))
CONVERSATIONS = {
    "single": row([ASKED], ANSWER),
    "system": row([Message("system", "Be brief."), ASKED], ANSWER),
    "empty system": row([Message("system", ""), ASKED], ANSWER),
    "multi": row([ASKED], ANSWER, AGAIN, SECOND),
    "unicode": row([Message("user", "Où? 你好 🙂")], Message("assistant", "Là-bas: 再见 🙃\n\n1. é")),
    "thought": row([ASKED], THOUGHT),
    "inline": row([ASKED], INLINE),
    "history": row([ASKED, INLINE, AGAIN], SECOND),
    "thoughts": THOUGHTS,
    "last": choose_turns([THOUGHTS], "last")[0],
    "prefilled": row([ASKED, Message("assistant", "Hm,")], ANSWER),
    "tools": row([ASKED], CALL, RESULT, ANSWER, tools=TOOLS),
    "result": row([ASKED, CALL, RESULT], ANSWER, tools=TOOLS),
}
OUTCOMES = {
    "E": None,  # exact
    "A": None,  # exact, and the token that ends a turn in the middle is added at the end
    "x": "the chat template refuses the conversation",
    "d": "differently once the turn follows",
    "t": "turn 1 differently once the turn follows; --data.turns last",
    "r": r"reasoning_content: the chat template leaves out",
    "c": r"tool_calls: the chat template leaves out",
    "o": r"tools: the chat template leaves out",
    "p": "writes a thought before the answer's own; give that as reasoning_content",
    "m": r"messages\[\d\]: the chat template (drops or changes|writes it)",
}
"""What became of a conversation, and for refusals what is said."""

TABLE = dict(
    line.split()
    for line in """
cohere EEEEErEErrxxx
cohere2 EEEEErEErrxxx
cohere2_training EEEEErEErrxxx
cohere_training EEEEErEErrxxx
deepseek_r1_distill dddddddddddtc
deepseek_r1_distill_training ddddddEddddtc
deepseekv3 dddddddddddto
deepseekv3_training dddddddddddto
diffusion_gemma EEEEEEEErEdEE
diffusion_gemma_training EEEEEEEErEdEE
gemma ExxEErEErrxxx
gemma3 EEEEErEErrxxx
gemma3_training EEEEErEErrxxx
gemma4 EEEEErEErrdEE
gemma4_v2 EEEEErEErrEEE
gemma4_v3 EEEEErEErrdEE
gemma4_v4 EEEEErEErrdEE
gemma4_v5 EEEEEEEErEdEE
gemma_training ExxEErEErrxxx
glm4moe AAAAAAAArAAAA
glm4moe_training EEEEEEEErEEEE
gptoss EEEEEEEErEEEE
gptoss_training EEEEEEEErEEEE
idefics3 EEEEErEErrEcc
idefics3_training EEEEErEErrEcc
lfm2 EEEEErEErrEcc
lfm2_2_5 EEEEEEEErEEEE
lfm2_2_5_v2 EEEEEEEErEEEE
lfm2_2_5_vl EEEEEEEErEEEE
lfm2_training EEEEErEErrEcc
lfm2_v2 EEEEErEErrEEE
lfm2_v2_training EEEEErEErrEEE
llama3 EEEEErEErrEcc
llama3_1 EEEEErEErrEEE
llama3_2 EEEEErEErrEEE
llama3_training EEEEErEErrEcc
llava_next EEEEErEErrExx
llava_next_training EEEEErEErrExx
muse_glimmer EEEEEEEEEEEEE
muse_glimmer_training EEEEEEEEEEEEE
nemotron_3_5_lightning dddddEEdtEddd
nemotron_3_5_lightning_training dddddEEdtEddd
nemotron_3_nano dddddEEdtEddd
nemotron_3_nano_training dddddEEdtEddd
nemotron_3_super dddddEEdtEddd
nemotron_3_super_training dddddEEdtEddd
nemotron_3_ultra dddddEEdtEddd
nemotron_3_ultra_training dddddEEdtEddd
phi3 EEEEErEErrEcc
phi3_5 EEEEErEErrEcc
phi3_5_training EEEEErEErrEcc
phi3_training EEEEErEErrEcc
qwen2_5 EEEEErEErrEEE
qwen2_5_training EEEEErEErrEEE
qwen2_5_vl EEEEErEErrEcc
qwen2_5_vl_training EEEEErEErrEcc
qwen3 EEEEEEEErEdEE
qwen3_5_nothink EEEtEddEddEEE
qwen3_5_nothink_training EEEEEddEddEEE
qwen3_5_think EEEtEEEEtEEEE
qwen3_5_think_training EEEEEEEEEEEEE
qwen3_6 EEEtEEEEtEEEE
qwen3_6_training EEEEEEEEEEEEE
qwen3_8 EEEEEEpEEEEEE
qwen3_8_training EEEEEEpEEEEEE
qwen3_instruct_2507 EEEEErEErrEEE
qwen3_instruct_2507_training EEEEErEErrEEE
qwen3_training EEEEEEEEEEEEE
qwen3_vl EEEEErEErrEEE
qwen3_vl_training EEEEErEErrEEE
smolvlm EEEEErEErrEcc
smolvlm_training EEEEErEErrEcc
""".strip().splitlines()
)
"""One letter for each conversation, in their order."""


@cache
def base() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    words = "What is the capital of France? It is Paris, of course. user assistant system model"
    backend.train_from_iterator([words] * 3, trainer)
    return backend.to_str()


def make_tokenizer(text: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with the control tokens that a template spells; with or without `special` for those of answers."""
    tokens = list(dict.fromkeys(["<s>", "</s>", *TOKEN.findall(text)]))
    backend = Tokenizer.from_str(base())
    for token in tokens:
        is_special = special or not MARKUP.search(token)
        added = AddedToken(token, special=is_special, normalized=False)
        (backend.add_special_tokens if is_special else backend.add_tokens)([added])
    eos = next((token for token in ENDS if token in tokens), "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = text
    return tokenizer


def plain(message: Message, parts: bool) -> dict:
    """A message as people hand it to transformers."""
    content = [{"type": "text", "text": message.content}] if parts else message.content
    # transformers 5.23 gives templates the other spelling itself, 5.17 only what is handed to it.
    made = {"role": message.role, "content": content}
    made |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    made |= {"name": message.name, "tool_call_id": message.tool_call_id}
    if message.tool_calls:
        arguments = {"city": "Paris", "days": 3}
        function = {"name": message.tool_calls[0].name, "arguments": arguments}
        made["tool_calls"] = [{"type": "function", "id": message.tool_calls[0].id, "function": function}]
    return {key: value for key, value in made.items() if value is not None}


def own_ids(chat: Chat, messages, example: Example, **options) -> dict:
    tools = json.loads(TOOLS) if example.tools else None
    listed = [plain(message, "idefics" in chat.family or "llava" in chat.family or "smolvlm" in chat.family)
              for message in messages]  # fmt: skip
    return chat.tokenizer.apply_chat_template(listed, tools=tools, return_dict=True, **options)


def outcome(chat: Chat, example: Example) -> str:
    """The letter of the table; every claim of an exact row is checked."""
    try:
        tree = chat.tree(example, 100_000)
    except RowError as error:
        found = [letter for letter, reason in OUTCOMES.items() if reason and re.search(reason, str(error))]
        assert found, str(error)
        return found[-1] if "t" not in found else "t"
    (branch,) = tree.branches
    (response,) = example.responses
    first = next(index for index, message in enumerate(response.messages) if message.trained and index % 2 == 0)
    moved = response.messages[:first]
    start = own_ids(chat, example.prompt + moved, example, add_generation_prompt=True)["input_ids"]
    assert tree.prompt.tolist() == start
    whole = own_ids(chat, example.prompt + response.messages, example)["input_ids"]
    ids = tree.prompt.tolist() + branch.ids.tolist()
    added = len(ids) > len(whole)
    assert ids[: len(ids) - added] == whole[: len(ids) - added]
    rest = chat.tokenizer.decode(whole[len(ids) :])
    assert not rest.strip() or rest.strip() == chat.tokenizer.eos_token, "only what follows the end is left out"
    assert branch.ids[-1] in chat.eos_ids
    check_spans(chat, branch, response.messages[first:])
    return "A" if added else "E"


def check_spans(chat: Chat, branch, messages) -> None:
    """Each answer is trained, nobody else's text is."""
    cuts = [0, *(np.flatnonzero(np.diff(branch.trained.astype(int))) + 1), len(branch)]
    spans = [(chat.tokenizer.decode(branch.ids[a:b]), bool(branch.trained[a])) for a, b in zip(cuts, cuts[1:])]
    trained = [text for text, learnt in spans if learnt]
    answers = [message for message in messages if message.role == "assistant"]
    assert len(trained) == len(answers)
    for text, message in zip(trained, answers, strict=True):
        said = [message.content.split("\n")[-1], message.reasoning or ""]
        said += [part for call in message.tool_calls for part in (call.name, "city", "Paris", "days", "3")]
        assert all(part in text for part in said)
        ends = chat.tokenizer.convert_ids_to_tokens(sorted(chat.end_ids))
        assert any(text.endswith(end) for end in ends)
    others = "".join(text for text, learnt in spans if not learnt)
    for message in messages:
        if message.role != "assistant":
            assert message.content in others


@cache
def chat_of(name: str, special: bool = True) -> Chat:
    chat = Chat(make_tokenizer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), special))
    chat.family = name
    return chat


NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
THINKING = [name for name in ("glm4moe", "lfm2_2_5", "nemotron_3_nano", "qwen2_5", "qwen3", "qwen3_6") if name in NAMES]


def test_the_table_has_every_template():
    assert [name for name in NAMES if name not in TABLE] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name in TABLE])
def test_every_conversation_is_exact_or_refused(name):
    assert "".join(outcome(chat_of(name), example) for example in CONVERSATIONS.values()) == TABLE[name]


@pytest.mark.parametrize("name", THINKING)
def test_tokens_of_answers_are_the_same_whether_special_or_not(name):
    plain_tokens = chat_of(name, special=False)
    for kind in ("single", "thought", "inline", "tools", "last"):
        letter = TABLE[name][list(CONVERSATIONS).index(kind)]
        assert outcome(plain_tokens, CONVERSATIONS[kind]) == letter
        if letter in "EA":
            one, other = (chat.tree(CONVERSATIONS[kind], 10_000) for chat in (chat_of(name), plain_tokens))
            assert one.prompt.tolist() == other.prompt.tolist()
            assert one.branches[0].ids.tolist() == other.branches[0].ids.tolist()
            assert one.branches[0].trained.tolist() == other.branches[0].trained.tolist()


INSIDE = {"deepseek_r1_distill_training", "deepseekv3_training", "diffusion_gemma_training"}
"""Training templates whose markers stand elsewhere: around the role's header as well, or not around what the model has
to write between a tool's result and its answer."""
WRITTEN = {"", "<|start|>assistant", "assistant", "<think>", "<think>\n\n</think>"}
"""What the generation prompt writes of an answer inside a response, which their markers count as written by the model;
and white space behind a turn's end."""


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_training") and name not in INSIDE])
def test_trained_spans_are_those_of_training_templates(name):
    chat = chat_of(name)
    for kind, letter in zip(CONVERSATIONS, TABLE.get(name, ""), strict=True):
        example = CONVERSATIONS[kind]
        if letter not in "EA" or kind == "last":
            continue
        own = own_ids(chat, example.prompt + example.responses[0].messages, example, return_assistant_tokens_mask=True)
        tree = chat.tree(example, 10_000)
        start, branch = len(tree.prompt), tree.branches[0]
        wanted = np.array(own["assistant_masks"], bool)[start : start + len(branch)]
        beyond = branch.trained[: len(wanted)] & ~wanted
        assert not [t for t in tokens_at(chat, branch, beyond) if "\ufffd" not in t], "half characters have no offsets"
        missing = np.flatnonzero(wanted & ~branch.trained[: len(wanted)])
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            assert chat.tokenizer.decode(branch.ids[run]).strip() in WRITTEN


def tokens_at(chat, branch, where) -> list[str]:
    return [chat.tokenizer.decode([int(i)]) for i in branch.ids[: len(where)][where]]
