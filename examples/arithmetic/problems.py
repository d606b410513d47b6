"""Arithmetic word problems in GSM8K's shape (arXiv 2110.14168), made from templates.

A problem is an opening (what somebody has), events (more, fewer, half of it) and a question. Every calculation in it is
a line of the worked solution, and `steps` counts them. Train and test share names, things, sentences and calculations,
but never the same story with the same numbers. The calculations alone are a file too: what is left to learn is which of
them a story asks for.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from assent.errors import UserError

STEPS = (1, 2, 3)
"""Calculations in a problem; as many problems of each number."""
LARGEST = 20
"""Most things that anybody has."""
FACTS = 20_000
"""Stories whose calculations are those that there are (409 at 20 things)."""

TRIES = 50
"""Stories made for each row that is asked for, before there are taken to be no more."""
SHARES = {"sft": 0.3, "rl": 0.5, "test": 0.2}
"""The files, and the share of all stories that may be in each."""

HE = "Tom Ben Sam Max Leo Paul Omar Luis Ivan Noah Adam Carl Hugo Ravi Finn Kenji".split()
SHE = "Ann Eva Mia Zoe Lily Nora Rosa Tina Maya Ines Olga Jane Ruth Asha Yuki Vera".split()
THINGS = (
    "apples pears plums eggs books coins cards stamps shells beads pens stickers marbles cookies flowers candles "
    "buttons tickets balloons muffins"
).split()
HOLDERS = "boxes bags baskets jars trays shelves".split()


@dataclass
class Story:
    """A problem while it is being told: `now` is how many things there are."""

    rng: random.Random
    words: Mapping[str, str]
    now: int = 0
    told: list[str] = field(default_factory=list)
    solution: list[str] = field(default_factory=list)
    plot: list[str] = field(default_factory=list)

    def tell(self, *ways: str, **numbers: int) -> None:
        """Adds a sentence in one of these ways."""
        self.told.append(self.rng.choice(ways).format(**self.words, **numbers))

    def solve(self, words: str, expression: str, unit: str = "", **numbers: int) -> None:
        """Adds a calculation in whole numbers to the solution; its result is `now`."""
        written = expression.format(now=self.now, **numbers)
        left, sign, right = re.fullmatch(r"(\d+)([-+*/])(\d+)", written).groups()  # type: ignore[union-attr]
        a, b = int(left), int(right)
        assert sign != "/" or a % b == 0
        self.now = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        self.solution.append(f"{words} {written}={unit}<<{written}={self.now}>>{self.now}.")

    @property
    def key(self) -> str:
        """The story and its numbers, whatever the names and things."""
        return " ".join(self.plot)


# ---- openings, events, questions: each tells a part of the story and adds its calculation, if it has one


def has(story: Story) -> None:
    story.now = story.rng.randint(3, 12)
    story.plot.append(f"has {story.now}")
    story.tell("{name} has {now} {things}.", "There are {now} {things} on the table of {name}.", now=story.now)


def holders(story: Story) -> None:
    a, b = story.rng.randint(2, 5), story.rng.randint(2, 5)
    story.plot.append(f"holders {a} {b}")
    story.tell("{name} has {a} {holders} with {b} {things} each.", "{name} fills {a} {holders}, {b} {things} in each.",
               a=a, b=b)  # fmt: skip
    story.solve("First there are", "{a}*{b}", a=a, b=b)


def two_sources(story: Story) -> None:
    a, b = story.rng.randint(3, 12), story.rng.randint(2, 9)
    story.plot.append(f"sources {a} {b}")
    story.tell("{name} has {a} {things} at home and {b} at school.", "{name} got {a} {things} on Monday and {b} on "
               "Tuesday.", a=a, b=b)  # fmt: skip
    story.solve("First there are", "{a}+{b}", a=a, b=b)


def more(story: Story) -> None:
    b = story.rng.randint(2, 9)
    story.plot.append(f"more {b}")
    story.tell("{He} buys {b} more.", "{friend} gives {him} {b} more.", "Then {he} finds another {b}.", b=b)
    story.solve("Now there are", "{now}+{b}", b=b)


def fewer(story: Story) -> None:
    b = story.rng.randint(2, min(9, story.now - 1))
    story.plot.append(f"fewer {b}")
    story.tell("{He} gives {b} to {friend}.", "{He} loses {b} of them.", "{friend} takes {b} of them.", b=b)
    story.solve("That leaves", "{now}-{b}", b=b)


def half(story: Story) -> None:
    story.plot.append("half")
    story.tell("{He} gives half of them to {friend}.", "Half of them get lost.")
    story.solve("Half of that is", "{now}/2")


def how_many(story: Story) -> None:
    story.plot.append("count")
    story.tell("How many {things} does {name} have now?", "How many {things} are there in the end?")


def sold(story: Story) -> None:
    price = story.rng.randint(2, 5)
    story.plot.append(f"sold {price}")
    story.tell("{He} sells them for ${p} each. How many dollars does {he} get?", "Each of them is worth ${p}. How much "
               "are they worth?", p=price)  # fmt: skip
    story.solve("They bring", "{now}*{p}", "$", p=price)


def shared(story: Story) -> None:
    k = story.rng.choice([k for k in range(2, 10) if story.now % k == 0 and story.now > k])
    story.plot.append(f"shared {k}")
    story.tell("{He} shares them equally among {k} friends. How many {things} does each friend get?", "{He} puts them "
               "into {k} {holders}, as many in each. How many {things} are in one?", k=k)  # fmt: skip
    story.solve("Each gets", "{now}/{k}", k=k)


def missing(story: Story) -> None:
    target = story.now + story.rng.randint(2, 9)
    story.plot.append(f"missing {target}")
    story.tell("{He} wants to have {t}. How many more {things} does {he} need?", t=target)
    story.solve("It takes", "{t}-{now}", t=target)


Part = Callable[[Story], None]
OPENINGS: dict[Part, int] = {has: 0, holders: 1, two_sources: 1}
QUESTIONS: dict[Part, int] = {how_many: 0, sold: 1, shared: 1, missing: 1}
"""Openings and questions with the calculations in them; an event is always one."""
EVENTS: tuple[Part, ...] = (more, fewer, half)
FITS: dict[Part, Callable[[int], bool]] = {
    more: lambda now: now <= LARGEST - 9,
    fewer: lambda now: now >= 3,
    half: lambda now: now % 2 == 0 and now >= 4,
    sold: lambda now: now <= 9,
    shared: lambda now: any(now % k == 0 and now > k for k in range(2, 10)),
}
"""When a part can follow, by how many things there are: numbers stay whole and small. The others always can."""


def story(rng: random.Random, steps: int) -> Story:
    """A story with that many calculations."""
    while True:
        opening, question = rng.choice([*OPENINGS]), rng.choice([*QUESTIONS])
        events = steps - OPENINGS[opening] - QUESTIONS[question]
        # A count of what was never changed is no question, and somebody who only has things needs an event.
        if events < 0 or (question is how_many and events == 0 and opening is has):
            continue
        made = Story(rng, _words(rng))
        opening(made)
        for _ in range(events):
            made_by = rng.choice([event for event in EVENTS if _fits(event, made.now)])
            made_by(made)
        if _fits(question, made.now):
            question(made)
            return made


def _fits(part: Part, now: int) -> bool:
    return part not in FITS or FITS[part](now)


def _words(rng: random.Random) -> dict[str, str]:
    names = [(name, "he", "him") for name in HE] + [(name, "she", "her") for name in SHE]
    (name, he, him), (friend, _, _) = rng.sample(names, 2)
    return {
        "name": name, "friend": friend, "he": he, "He": he.capitalize(), "him": him,
        "things": rng.choice(THINGS), "holders": rng.choice(HOLDERS),
    }  # fmt: skip


# ---- files


def row(made: Story) -> dict[str, object]:
    """The story as GSM8K has it, and `steps`."""
    solution = "\n".join([*made.solution, f"#### {made.now}"])
    return {"question": " ".join(made.told), "answer": solution, "steps": len(made.solution)}


def home(key: str) -> str:
    """The one file of `SHARES` that a story may be in: by a hash of the story and its numbers."""
    at = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
    for name, share in SHARES.items():
        if at < share:
            return name
        at -= share
    return name


def problems(file: str, number: int, seed: int) -> list[dict[str, object]]:
    """`number` rows for one file of `SHARES`, as many of each of `STEPS`, no two with the same question.

    Raises UserError where there are not so many."""
    rng = random.Random(f"{file} {seed}")
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    for _ in range(TRIES * number):
        made = story(rng, STEPS[len(rows) % len(STEPS)])
        question = " ".join(made.told)
        if home(made.key) == file and question not in seen:
            seen.add(question)
            rows.append(row(made))
        if len(rows) == number:
            break
    else:
        raise UserError(
            f"{file}.jsonl: found only {len(rows)} different questions of the {number} asked for; ask for fewer"
        )
    rng.shuffle(rows)
    return rows


def calculations(number: int, seed: int) -> list[dict[str, object]]:
    """`number` rows of two to five calculations that stories have: half of them are asked for, half are free."""
    rng = random.Random(f"calculations {seed}")
    stories = (story(rng, rng.choice(STEPS)) for _ in range(FACTS))
    facts = sorted({fact for told in stories for fact in re.findall("<<(.*?)>>", "".join(told.solution))})
    rows: list[dict[str, object]] = []
    for index in range(number):
        chosen = rng.sample(facts, rng.randint(2, 5))
        asked = ", ".join(fact.partition("=")[0] for fact in chosen)
        told = "\n".join([*(f"{fact}." for fact in chosen), f"#### {chosen[-1].partition('=')[2]}"])
        rows.append({"question": "Write some calculations." if index % 2 else f"Work out {asked}.", "answer": told})
    return rows


def write(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Writes FILE.jsonl for each file of `sizes`, and words.jsonl: text to train a tokenizer on, the SFT rows without
    their digits. No token can then join two digits, or a digit and what stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        file: calculations(number, seed) if file == "calculations" else problems(file, number, seed)
        for file, number in sizes.items()
    }
    made["words"] = [
        {"prompt": _without_digits(row["question"]), "completion": _without_digits(row["answer"])}
        for row in made["sft"]
    ]
    for file, rows in made.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        part = folder / f"{file}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / f"{file}.jsonl")


def _without_digits(text: object) -> str:
    return re.sub(r"\d", "", re.sub(r"<<[^<>]*>>", "", str(text)))
