"""The number that an answer ends on, in the many ways that models write it."""

from __future__ import annotations

import time
from fractions import Fraction as F

import pytest

from assent.measures.numbers import final_number, gold_number, last_box

WRITTEN = [
    # how a number is written
    ("-5", -5),
    ("–5", -5),  # en dash
    ("−5", -5),  # minus sign
    ("x = - 5", -5),
    ("(–5)", -5),
    ("3–5", 5),
    ("+5", 5),
    ("1.5e3", 1500),
    ("3E-2", F(3, 100)),
    ("1e-05", F(1, 100000)),
    ("9e999999", 9),
    ("5 e3", 5),
    ("1.5 × 10^3", 1500),
    ("2 x 10^3", 2000),
    ("1.5*10**3", 1500),
    ("2^5", 32),
    ("10^3", 1000),
    ("1 000", 1000),
    ("1\u202f000", 1000),
    ("1\u00a0000\u00a0000", 1000000),
    ("1\u2009450\u2009000.5", F("1450000.5")),
    ("1'000", 1000),
    ("12 345", 12345),
    ("1.450.000", 1450000),
    ("€1.50", F(3, 2)),
    ("-$5", -5),
    ("$-5", -5),
    ("50 %", 50),
    ("__18__", 18),
    ("`18`", 18),
    ("18.00.", 18),
    ("3 / 4", F(3, 4)),
    ("-3/4", F(-3, 4)),
    ("1 1/2", F(3, 2)),
    ("1½", F(3, 2)),
    ("½", F(1, 2)),
    (r"\frac{3}{4}", F(3, 4)),
    (r"-\dfrac{3}{4}", F(-3, 4)),
    (r"\frac34", F(3, 4)),
    (r"1\tfrac{1}{2}", F(3, 2)),
    (r"1{,}000", 1000),
    (r"\$18", 18),
    # what is no number
    ("18 g of CO2", 18),
    ("18 cm^2", 18),
    ("18 m² or 18 m2", 18),
    ("It is 12, and the offer ends on 2026-11-29.", 12),
    ("12 by 29.11.2026", 12),
    ("12, due November 29, 2026", 12),
    ("12 on 29 November 2026", 12),
    ("12 eggs until March 15", 12),
    ("12 before 7:30 pm", 12),
    ("12 at 7 pm, or 07:30:15", 12),
    ("from 10:00 to 11:30 that is 90 minutes", 90),
    ("In March 15 people came", 15),
    ("They may see 5 people", 5),
    ("in 2026", 2026),
    # where it stands
    (r"\boxed{12} since 3 boxes of 4", 12),
    (r"\boxed{12}, no: \boxed{13}, of 20", 13),
    (r"\boxed{12} and then \boxed{13", 12),
    (r"\boxed{\frac{3}{4}}", F(3, 4)),
    (r"\boxed{-\dfrac{1}{2}} of 3", F(-1, 2)),
    (r"\boxed{1,\!000}", 1000),
    (r"\boxed{\$18}", 18),
    (r"\boxed{18\%}", 18),
    (r"\boxed{12 \text{ cm}^2}", 12),
    (r"\boxed{x = 5}", 5),
    (r"\boxed{9 \cdot 2 = 18}", 18),
    (r"\boxed{\left(18\right)}", 18),
    (r"\boxed{\boxed{18}}", 18),
    (r"\boxed{1.5 \times 10^{3}}", 1500),
    (r"\boxed{10^{-2}}", F(1, 100)),
    (r"\boxed 7, of 9", 7),
    (r"\(\boxed{7}\), of 9.", 7),
    (r"#### 5 \boxed{18}", 18),
    (r"\boxed{12\text{ boxes of }4}", None),
    (r"\boxed{3, 4}", None),
    (r"\boxed{\sqrt{2}}", None),
    (r"\boxed{2\pi}", None),
    (r"\boxed{A}, not 3", None),
    (r"\boxed{}", None),
    ("#### 18 ####", 18),
    ("#### 9*2=18, of 20", 18),
    ("#### $1,450,000.00", 1450000),
    ("18 #### ", None),
    ("The answer is 18, since 3 boxes of 6.", 18),
    ("**Answer:** 18 (of 20)", 18),
    ("Answer:\n18\n\nThat took 3 steps", 18),
    ("The answer is: $18.\nIt took 3 steps", 18),
    ("The answer is 9 * 2 = $18, of which 3 stay", 18),
    ("The answer is 5 apples + 7 apples = 12 apples, in 2 bags", 12),
    ("The answer is \\(18\\). It took 3 steps", 18),
    ("the answer is 12. No: the answer is 13, of 14", 13),
    ("The answer is the following.\nWe have 3 and 4, so 7", 7),
    ("My answer is based on this: 3 + 4 = 7", 7),
    ("the answer is eighteen", None),
]


@pytest.mark.parametrize(("text", "number"), WRITTEN)
def test_the_number_that_an_answer_ends_on(text: str, number: F | int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("gold", "number"),
    [
        ("18", 18),
        ("1 000", 1000),
        ("–5", -5),
        ("1.5e3", 1500),
        ("50%", 50),
        (r"\frac{3}{4}", F(3, 4)),
        (r"So it is 4 + 8, \boxed{12}.", 12),
        (r"$\boxed{12\text{ cm}}$", 12),
        ("Steps.\n#### 1,234", 1234),
        ("The answer is 18.", 18),
        ("Two of 3.\nAnswer: 2/3", F(2, 3)),
    ],
)
def test_gold_answers_are_read_likewise(gold: str, number: F | int) -> None:
    assert gold_number(gold) == final_number(gold) == number


@pytest.mark.parametrize("gold", [r"\boxed{3, 4}", "2026-11-29", "7:30", r"\sqrt{2}", r"2\pi", "x", r"\boxed{}"])
def test_gold_answers_that_are_no_number(gold: str) -> None:
    with pytest.raises(ValueError, match="expected a number, alone"):
        gold_number(gold)


def test_boxes() -> None:
    assert last_box(r"a \boxed{b{c}d} e") == "b{c}d"
    assert last_box(r"\boxed{a}\boxed{b}") == "b"
    assert last_box(r"\boxed{a") is None and last_box("{a}") is None


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "answer is ",
        "1 000 ",
        "####",
        "-",
        "\\frac{",
        "1,",
        "\\sqrt",
        "9",
        " ",
        "on 1",
        "<<",
        "\\text{",
        "^{",
    ],
)
def test_long_nonsense_is_read_in_linear_time(piece: str) -> None:
    final_number(piece * (200_000 // len(piece)))


@pytest.mark.parametrize(
    "text", ["#### " + "9" * 4000 + "^999", "\\boxed{" + "9" * 4000 + "^999}", "#### 9^999 x 10^999"]
)
def test_a_power_without_end_is_no_number(text):
    start = time.process_time()
    final_number(text)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "piece", ["1,", "\\boxed{", "\\frac{1", "answer ", "1^", "1-1-", "on May 1 ", "½", "1 x 10^", "- "]
)
def test_numbers_are_looked_for_in_time_that_grows_with_the_text(piece):
    start = time.process_time()
    final_number(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 2
