"""The table of row shapes: for each its columns, what becomes of them, and one row as an example."""

from __future__ import annotations

from collections.abc import Callable

from assent.data.formats import conversations, judged, native, pairs
from assent.data.formats.fates import REASONING, Fate
from assent.data.formats.shape import Fields, Format
from assent.data.formats.values import Row


def _lists(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[column], list) for column in columns)


# Columns that hold answers or verdicts: beside one of them a prompt is not "prompts only".
ANSWERS = ("completion", "completions", "chosen", "rejected", "response", "responses", "output", "label", "labels")


def _no_answers(row: Row) -> bool:
    """Nothing is answered; a `label` in words is a right answer or a topic, no verdict."""
    found = [column for column in ANSWERS if row.get(column) is not None]
    return not found or (found == ["label"] and isinstance(row["label"], str))


def _text(**columns: str) -> Fields:
    """Columns whose text is the conversation's, with a word about each."""
    return {name: (Fate.TEXT, about) for name, about in columns.items()}


def _feedback(**columns: str) -> Fields:
    return {name: (Fate.FEEDBACK, about) for name, about in columns.items()}


THOUGHT: Fields = dict.fromkeys(REASONING, (Fate.TEXT, "what was thought before the answer"))
JUDGED_THOUGHT: Fields = dict.fromkeys(pairs.THOUGHTS, (Fate.TEXT, "what was thought before the answer"))
STRENGTH: Fields = _feedback(
    margin="how clearly chosen is better, from 0",
    score_chosen="rating of chosen; the gap is the strength where there is no margin",
    score_rejected="rating of rejected",
)
NO_MESSAGES: Fields = dict.fromkeys(
    ("system", "tools", "chat_template_kwargs"),
    (Fate.REFUSED, "plain text has no messages, so this has no place: remove the column, or write messages"),
)
INSTRUCTION: Fields = _text(
    instruction="the question, or its first part",
    input="appended to it on a new line where it is not empty",
    history="earlier turns, [[question, answer], ...]",
)
TURNS = "the turns; what follows the first question is the answer; one that ends with a question is a prompt"
KEPT_PROMPT: Fields = {"prompt": (Fate.META, "not read: the question stands in the conversation")}
ASK, SAY, NO = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
HUMAN, GPT, WORSE = {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}, {"from": "gpt", "value": "5"}
REPEATED: Fields = {
    "messages": (Fate.META, "not read: chosen and rejected say it"),
    "prompt_id": (Fate.META, "a name of the prompt"),
}
MARGIN: Row = {"margin": 1.5, "score_chosen": 4.0, "score_rejected": 2.5}
DIALOGUE = "\n\nHuman: 2+2?\n\nAssistant: "

ROWS = (
    Format(
        "assent",
        "assent's own records: prompt, responses and feedback by response index",
        ("prompt", "responses", "feedback"),
        native.native,
        {
            **_text(
                prompt="messages up to the last question, or its text",
                responses="[{messages, source, finished}], or texts; finished false: cut off, no end is trained",
            ),
            **_feedback(feedback="[{kind: pair, ranking, rating, binary or critique, ...}] by index of the responses"),
            "prompt_text": (Fate.SHOWN, "the prompt where it was text and no messages"),
            "meta": (Fate.ENTRIES, "an object of further columns"),
        },
        {
            "prompt": [ASK],
            "responses": [{"messages": [SAY], "source": "human"}, {"messages": [NO]}],
            "feedback": [{"kind": "pair", "chosen": 0, "rejected": 1, "strength": 2.0}],
            "prompt_text": "2+2?",
            "meta": {"topic": "sums"},
        },
        _lists("responses", "feedback"),
    ),
    Format(
        "sharegpt",
        "ShareGPT conversations: conversations [{from, value}], optional system",
        ("conversations",),
        conversations.sharegpt,
        _text(conversations=TURNS),
        {"conversations": [HUMAN, GPT]},
    ),
    Format(
        "steerlm",
        "NeMo's SteerLM rows: conversations [{from, value, label}], mask User, type VALUE_TO_TEXT (or TEXT_TO_VALUE)",
        ("conversations", "mask", "type"),
        conversations.steerlm,
        _text(conversations="the turns; an assistant's label is quality:4,toxicity:0,...: what the answer is")
        | {
            "mask": (Fate.CHECKED, "User: whose turns are only read"),
            "type": (Fate.CHECKED, "VALUE_TO_TEXT: labels steer; TEXT_TO_VALUE: the last answer's label is a rating"),
        },
        {"conversations": [HUMAN, {**GPT, "label": "quality:4,toxicity:0"}], "mask": "User", "type": "VALUE_TO_TEXT"},
    ),
    Format(
        "sharegpt-preference",
        "ShareGPT conversations, with chosen and rejected as one {from, value} each",
        ("conversations", "chosen", "rejected"),
        conversations.sharegpt_preference,
        _text(conversations="the prompt's turns", chosen="the better answer", rejected="the worse answer") | STRENGTH,
        {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE, **MARGIN},
    ),
    Format(
        "sharegpt-binary",
        "ShareGPT conversations whose last answer has kto_tag true or false",
        ("conversations", "kto_tag"),
        conversations.sharegpt_binary,
        _text(conversations="the turns, the last of which is judged")
        | _feedback(kto_tag="true or false (or 1, 0): whether the answer is desirable"),
        {"conversations": [HUMAN, GPT], "kto_tag": True},
    ),
    Format(
        "messages",
        "OpenAI conversations: messages [{role, content}]",
        ("messages",),
        conversations.openai_messages,
        _text(messages=TURNS) | KEPT_PROMPT,
        {"messages": [ASK, SAY], "prompt": "2+2?"},
        lambda row: not pairs.has_rejected_answer(row),
    ),
    Format(
        "messages-binary",
        "OpenAI conversations whose last answer has label true or false",
        ("messages", "label"),
        conversations.openai_binary,
        _text(messages="the turns, the last of which is judged")
        | _feedback(label="true or false (or 1, 0): whether the answer is desirable"),
        {"messages": [ASK, SAY], "label": True},
    ),
    Format(
        "messages-preference",
        "OpenAI conversations that end with the chosen answer, with rejected_response or rejected_messages",
        ("messages",),
        conversations.openai_rejected,
        _text(
            messages="the turns, the last of which is the better answer",
            rejected_response="the worse answer, as text or messages",
            rejected_messages="or the whole conversation with the worse answer",
        )
        | STRENGTH,
        {"messages": [ASK, SAY], "rejected_response": "5", **MARGIN},
        pairs.has_rejected_answer,
    ),
    Format(
        "alpaca",
        "Alpaca: instruction, output, optional input, system, history",
        ("instruction", "output"),
        conversations.alpaca,
        {**INSTRUCTION, **_text(output="the answer"), **THOUGHT, "text": (Fate.META, "the row as one text, not read")},
        {
            "instruction": "Add.",
            "input": "2+2",
            "history": [["Hi", "Hello"]],
            "output": "4",
            "reasoning": "2 and 2",
            "text": "…",
        },
    ),
    Format(
        "alpaca-preference",
        "Alpaca with answers chosen and rejected",
        ("instruction", "chosen", "rejected"),
        conversations.alpaca_preference,
        INSTRUCTION | _text(chosen="the better answer", rejected="the worse answer") | STRENGTH,
        {"instruction": "Add.", "input": "2+2", "history": [["Hi", "Hello"]], "chosen": "4", "rejected": "5", **MARGIN},
    ),
    Format(
        "alpaca-binary",
        "Alpaca whose output has kto_tag true or false",
        ("instruction", "output", "kto_tag"),
        conversations.alpaca_binary,
        INSTRUCTION
        | _text(output="the answer")
        | JUDGED_THOUGHT
        | _feedback(kto_tag="true or false (or 1, 0): whether the answer is desirable"),
        {"instruction": "Add.", "input": "2+2", "history": [["Hi", "Hello"]], "output": "4", "kto_tag": False},
    ),
    Format(
        "prompt",
        "prompts alone (text or messages)",
        ("prompt",),
        pairs.prompt_only,
        _text(prompt="the question, as text or messages"),
        {"prompt": [ASK], "answer": "4"},
        _no_answers,
    ),
    Format(
        "completion",
        "prompt and completion (text or messages)",
        ("prompt", "completion"),
        pairs.prompt_completion,
        _text(prompt="the question, as text or messages", completion="the answer, of the same kind") | THOUGHT,
        {"prompt": "2+2?", "completion": "4", "reasoning_content": "2 and 2"},
    ),
    Format(
        "binary",
        "prompt and completion with label true or false (text or messages)",
        ("prompt", "completion", "label"),
        pairs.binary,
        _text(prompt="the question, as text or messages", completion="the answer, of the same kind")
        | JUDGED_THOUGHT
        | _feedback(label="true or false (or 1, 0): whether the answer is desirable"),
        {"prompt": "2+2?", "completion": "5", "label": False},
    ),
    Format(
        "preference",
        "prompt, chosen and rejected (text or messages), optional margin or score_chosen and score_rejected",
        ("prompt", "chosen", "rejected"),
        pairs.preference,
        _text(prompt="the question, as text or messages", chosen="the better answer", rejected="the worse answer")
        | STRENGTH
        | REPEATED,
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", **MARGIN},
        pairs.plain_preference,
    ),
    Format(
        "preference-transcripts",
        "prompt, chosen and rejected as text, where both answers repeat the prompt",
        ("prompt", "chosen", "rejected"),
        pairs.preference_transcripts,
        _text(prompt="the question", chosen="prompt and better answer", rejected="prompt and worse answer")
        | STRENGTH
        | REPEATED,
        {"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5", **MARGIN},
        pairs.begins_with_prompt,
    ),
    Format(
        "preference-implicit",
        "chosen and rejected as whole conversations (messages); the prompt is their common beginning",
        ("chosen", "rejected"),
        pairs.preference_implicit,
        _text(chosen="question and better answer", rejected="question and worse answer") | STRENGTH | REPEATED,
        {"chosen": [ASK, SAY], "rejected": [ASK, NO], **MARGIN},
        lambda row: isinstance(row["chosen"], list) or isinstance(row["rejected"], list),
    ),
    Format(
        "ultrafeedback-binarized",
        "chosen and rejected as whole conversations beside a text prompt that repeats their question",
        ("prompt", "chosen", "rejected"),
        pairs.preference_redundant,
        {
            "prompt": (Fate.CHECKED, "one of the questions of chosen and rejected"),
            **_text(chosen="question and better answer", rejected="question and worse answer"),
            **STRENGTH,
            **REPEATED,
            "messages": (Fate.PASSED, "repeats chosen"),
        },
        {"prompt": "2+2?", "chosen": [ASK, SAY], "rejected": [ASK, NO], "messages": [ASK, SAY], **MARGIN},
        pairs.redundant_prompt,
    ),
    Format(
        "hh-rlhf",
        'chosen and rejected as dialogues in one text: "\\n\\nHuman: ...\\n\\nAssistant: ..."',
        ("chosen", "rejected"),
        pairs.hh_rlhf,
        _text(chosen="dialogue with the better answer", rejected="dialogue with the worse answer") | STRENGTH,
        {"chosen": DIALOGUE + "4", "rejected": DIALOGUE + "5", **MARGIN},
        pairs.dialogues,
    ),
    Format(
        "best-of",
        "text prompt with lists of right (chosen) and wrong (rejected) answers",
        ("prompt", "chosen", "rejected"),
        judged.best_of,
        _text(prompt="the question", chosen="right answers", rejected="wrong answers"),
        {"prompt": "2+2?", "chosen": ["4", "four"], "rejected": ["5", "22"]},
        pairs.several_answers,
    ),
    Format(
        "answers",
        "a prompt with several answers that nobody has judged yet: for assent label and assent judge",
        ("prompt", "responses"),
        native.unjudged,
        _text(prompt="the question, as text or messages", responses="the answers, each as text or messages"),
        {"prompt": "2+2?", "responses": ["4", "5"]},
        _lists("responses"),
    ),
    Format(
        "ranked",
        "context with completions [{rank, completion}], lowest rank best",
        ("context", "completions"),
        judged.ranked,
        _text(context="the question, as text or messages", completions="[{rank, completion}]; equal ranks are tied"),
        {"context": [ASK], "completions": [{"rank": 0, "completion": "4"}, {"rank": 1, "completion": "5"}]},
    ),
    Format(
        "helpsteer2",
        "prompt and response rated 0 to 4 in five attributes; consecutive rows of a prompt belong together",
        ("prompt", "response", *judged.HELPSTEER_ATTRIBUTES),
        judged.helpsteer2,
        _text(
            prompt="the question; earlier turns behind lines <extra_id_1>Assistant and <extra_id_1>User",
            response="the answer",
        )
        | _feedback(**dict.fromkeys(judged.HELPSTEER_ATTRIBUTES, "0 to 4")),
        {"prompt": "2+2?", "response": "4", **dict.fromkeys(judged.HELPSTEER_ATTRIBUTES, 3)},
        merges=True,
    ),
    Format(
        "helpsteer2-preference",
        "prompt, response_1, response_2 and preference_strength from -3 (first) to 3 (second)",
        ("prompt", "response_1", "response_2", "preference_strength"),
        judged.helpsteer2_preference,
        _text(prompt="as in helpsteer2", response_1="the first answer", response_2="the second answer")
        | _feedback(preference_strength="below 0: the first is better; 0: a tie"),
        {"prompt": "2+2?", "response_1": "5", "response_2": "4", "preference_strength": 2},
    ),
    Format(
        "helpsteer3-preference",
        "context (messages), response1, response2 and overall_preference from -3 (first) to 3 (second)",
        ("context", "response1", "response2", "overall_preference"),
        judged.helpsteer3_preference,
        _text(context="the prompt's turns", response1="the first answer", response2="the second answer")
        | _feedback(overall_preference="below 0: the first is better; 0: a tie"),
        {"context": [ASK], "response1": "4", "response2": "5", "overall_preference": -1},
    ),
    Format(
        "helpsteer3-votes",
        "context, response1, response2 and individual_preference, a vote each; beside overall_preference only by name",
        ("context", "response1", "response2", "individual_preference"),
        judged.helpsteer3_votes,
        _text(context="the prompt's turns", response1="the first answer", response2="the second answer")
        | _feedback(individual_preference="[{score}] from -3 to 3, a vote each (reward.votes makes shares of them)"),
        {"context": [ASK], "response1": "4", "response2": "5", "individual_preference": [{"score": -1}, {"score": 0}]},
        lambda row: row.get("overall_preference") is None,
    ),
    Format(
        "ultrafeedback",
        "instruction with completions [{response, annotations}] rated in several attributes",
        ("instruction", "completions"),
        judged.ultrafeedback,
        _text(
            instruction="the question",
            completions="[{response, annotations: {attribute: {Rating}}, model, critique}]; a Rating N/A is none",
        ),
        {
            "instruction": "2+2?",
            "completions": [
                {"response": "4", "annotations": {"helpfulness": {"Rating": "5"}}, "model": "a", "critique": "Right."},
                {"response": "5", "annotations": {"helpfulness": {"Rating": "1"}}, "model": "b"},
            ],
        },
    ),
    Format(
        "gsm8k",
        'question and worked answer that ends with "#### number"',
        ("question", "answer"),
        judged.gsm8k,
        _text(question="the question", answer="the answer, without <<...>>; also kept, and its number as final_answer"),
        {"question": "2+2?", "answer": "2 and 2 is <<2+2=4>>4.\n#### 4"},
        lambda row: isinstance(row["answer"], str) and "####" in row["answer"],
    ),
    Format(
        "text",
        "plain text without roles, trained as it is",
        ("text",),
        pairs.plain_text,
        _text(text="trained as a whole") | NO_MESSAGES,
        {"text": "Two and two make four."},
    ),
)
FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in ROWS}
