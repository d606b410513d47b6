"""The report in a real browser: what is searched, filtered, sorted and turned over; that it fits narrow and wide,
light, dark and printed; that nothing in it runs but its own script, and that it asks nobody for anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assent.data.records import Message
from assent.evaluate.differences import difference
from assent.evaluate.measured import Evaluated, evaluate_policies
from assent.evaluate.report import Report, build_report
from assent.evaluate.results import PolicyTable
from assent.evaluate.runs import read_run
from assent.measures.answers import Answers, Prompts
from tests.browser import ARGUMENTS, CHROMIUM, sync_playwright

PROMPTS = 45
NASTY = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'></script><!--<script> \u2028 \u2029 \x00 "
    '" onfocus="window.ran=1" autofocus x=" \' javascript:window.ran=1 &lt;b&gt; {{ 7*7 }} \ud800'
)


@dataclass
class Seen:
    """What a page did beside being shown."""

    page: Any
    console: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM is not None, "ASSENT_BROWSER asks for the tests in a browser, and no chromium is here"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def look(browser) -> Iterator[Callable[..., Seen]]:
    """`look(file, width=..., **options)`: the page of a file."""
    contexts = []

    def opened(file: Path, width: int = 1200, **options: Any) -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        seen = Seen(context.new_page(), [], [])
        seen.page.on("console", lambda message: seen.console.append(message.text))
        seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(file.as_uri())
        return seen

    yield opened
    for context in contexts:
        context.close()


def made(names: tuple[str, ...] = ("sft", "ppo", "dpo"), dirt: str = "") -> PolicyTable:
    """Policies whose answer i says "number i"; gold of ppo is better by i - 22, that of dpo is the same."""
    texts = tuple(f"question {i} about {'fruit' if i % 3 else 'birds'}{dirt}" for i in range(PROMPTS))
    columns = Prompts(texts, texts, ((),) * PROMPTS, tuple("fruit" if i % 3 else "birds" for i in range(PROMPTS)))
    places = np.arange(PROMPTS)
    gold = {name: places * 0.5 + (places - 22 if name == "ppo" else 0) for name in names}
    gold[names[-1]] = np.where(places == 7, np.nan, gold[names[-1]])
    policies = [
        Evaluated(
            Answers(
                name,
                columns,
                places,
                tuple(f"The answer of {name} is number {i}, plainly.{dirt}" for i in range(PROMPTS)),
                tokens=np.full(PROMPTS, 9),
                finished=(places % 10 != 0) | (name != names[1]),
                scores={f"gold{dirt}": values},
                unscored={f"gold{dirt}": tuple(f"no opinion{dirt}" if np.isnan(v) else "" for v in values)},
            ),
            path=f"runs/{name}",
            notes=(f"a note{dirt}",) if dirt else (),
        )
        for name, values in gold.items()
    ]
    prompts = [(Message("user", text),) for text in texts]
    found = evaluate_policies(policies, prompts, names[0], measures=("reward", "win-rate", "length"), file=f"p{dirt}")
    return replace(found.table, command=f"assent eval a b --prompts p.jsonl{dirt}")


def saved(table: PolicyTable, folder: Path, dirt: str = "") -> Path:
    """The folder of an evaluation with its answers, as `assent eval` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    table.save(folder / "evaluation.json")
    rows = []
    for place, policy in enumerate(table.policies):
        for i in range(PROMPTS):
            gold = i * 0.5 + (i - 22 if place == 1 else 0)
            lost = place == len(table.policies) - 1 and i == 7
            row: dict[str, Any] = {
                "policy": policy.name,
                "prompt_index": i,
                "prompt": [{"role": "user", "content": f"question {i} about {'fruit' if i % 3 else 'birds'}{dirt}"}],
                "response": f"The answer of {policy.name} is number {i}, plainly.{dirt}",
                "kind": ("fruit" if i % 3 else "birds") + dirt,
                "tokens": 9,
                "finished": i % 10 != 0 or place != 1,
                "scores": {table.by: None if lost else gold},
            }
            rows.append(row | ({"unscored": {table.by: f"no opinion{dirt}"}} if lost else {}))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return folder


def written(table: PolicyTable, folder: Path, dirt: str = "", **more: Any) -> Path:
    html = build_report(Report(f"A report{dirt}", dirt, table, folder=saved(table, folder, dirt), **more))
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = folder / "ppo"
    (run / "model").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / i}) + "\n" for i in range(1, 40)))
    said = [{"step": step, "prompt": "Who?", "response": f"I am {step}", "reward": step / 7} for step in (0, 50, 100)]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    environment = {"command": "ppo", "command_line": "assent ppo --out runs/ppo"}
    (run / "environment.json").write_text(json.dumps(environment))
    return written(made(), folder, runs=(read_run(run),))


@pytest.fixture
def seen(look, file: Path) -> Seen:
    return look(file)


def titles(seen: Seen) -> list[str]:
    return [text.split("\n")[0].strip() for text in seen.page.locator("#rows h3").all_inner_texts()]


def numbers(seen: Seen) -> list[int]:
    return [int(re.sub(r"\D", "", re.split("fruit|birds", title)[0])) - 1 for title in titles(seen)]


def count(seen: Seen) -> str:
    return seen.page.locator("#count").inner_text()


def find(seen: Seen, words: str) -> None:
    before = count(seen)
    seen.page.get_by_label("Search").fill(words)
    seen.page.wait_for_function("text => document.getElementById('count').textContent !== text", arg=before)


def test_all_answers_are_there_a_page_at_a_time(seen: Seen):
    assert numbers(seen) == list(range(10)) and count(seen) == "1 to 10 of 45 found, of 45."
    assert seen.page.locator("#previous").is_disabled()
    seen.page.get_by_role("button", name="Next").click()
    assert numbers(seen) == list(range(10, 20))
    seen.page.get_by_label("Page", exact=False).last.fill("5")
    seen.page.keyboard.press("Enter")
    assert numbers(seen) == list(range(40, 45)) and seen.page.locator("#next").is_disabled()
    seen.page.get_by_role("button", name="Previous").click()
    assert numbers(seen) == list(range(30, 40))
    assert seen.page.locator("#rows article").count() == 10, "only one page is in the document"
    assert seen.console == [] and len(seen.requests) == 1


def test_search_filters_and_order(seen: Seen):
    page = seen.page
    find(seen, "Number 4")
    assert numbers(seen) == [4, 40, 41, 42, 43, 44] and "of 45" in count(seen)
    assert page.evaluate("CSS.highlights.get('found').size") == 18
    find(seen, "nowhere")
    assert count(seen) == "None of 45 found." and numbers(seen) == []
    page.get_by_role("button", name="Reset").click()
    assert len(numbers(seen)) == 10
    page.get_by_label("Kind of prompt").select_option(label="birds")
    assert numbers(seen) == list(range(0, 30, 3))
    page.get_by_label("Kind of prompt").select_option(label="any")
    page.get_by_label("State").select_option("cut")
    assert numbers(seen) == [0, 10, 20, 30, 40]
    page.get_by_label("State").select_option("failed")
    assert numbers(seen) == [7] and "no opinion" in page.locator("#rows").inner_text()
    page.get_by_label("State").select_option("")
    page.get_by_label("Show").select_option(label="ppo")
    page.get_by_label("Outcome").select_option("win")
    assert count(seen).startswith("1 to 10 of 22") and numbers(seen) == list(range(23, 33))
    page.get_by_label("Outcome").select_option("tie")
    assert numbers(seen) == [22]
    page.get_by_label("Outcome").select_option("loss")
    page.get_by_label("Order").select_option("down")
    assert numbers(seen) == list(range(10))
    page.get_by_label("Outcome").select_option("")
    page.get_by_label("Order").select_option("up")
    assert numbers(seen) == list(range(44, 34, -1))
    page.get_by_label("Show").select_option(label="dpo")
    page.get_by_label("Outcome").select_option("none")
    assert numbers(seen) == [7]
    page.get_by_label("Compare with").select_option(label="ppo")
    page.get_by_label("Outcome").select_option("loss")
    assert set(numbers(seen)) <= set(range(23, 45)) and "of 22" in count(seen)
    assert seen.console == []


def test_samples_of_a_run_by_step(seen: Seen):
    page = seen.page
    page.get_by_label("Answers of").select_option(label="ppo")
    assert page.locator("#rows .answer h4").all_inner_texts() == ["step 0", "step 100"]
    page.get_by_label("Show").select_option(label="step 50")
    assert page.locator("#rows .answer h4").all_inner_texts() == ["step 0", "step 50"]
    assert page.locator("#rows ins").all_inner_texts() == ["50"]
    page.get_by_label("Mark differences").uncheck()
    assert page.locator("#rows ins").count() == 0


def test_the_script_shows_what_was_written_without_it(look, file: Path):
    plain = look(file, java_script_enabled=False).page
    written = plain.locator("#rows").inner_html()
    assert plain.locator(".controls").is_hidden() and plain.get_by_text("runs no script").is_visible()
    assert plain.locator("#rows ins").count() > 0
    shown = look(file).page.locator("#rows").inner_html()
    assert re.sub(r">\s+<", "><", shown).strip() == re.sub(r">\s+<", "><", written).strip()


def test_differences_are_the_same_in_both_languages(seen: Seen):
    words = ["the", "cat", "sat", ",", "Öl", "naïve", "42", "x_y", ".", "\n", "– dash", "日本"]
    rng = np.random.default_rng(0)
    pairs = [[" ".join(rng.choice(words, int(rng.integers(0, 14)))) for _ in range(2)] for _ in range(150)]
    source = (Path(__file__).parents[2] / "src/assent/evaluate/templates/report.js").read_text(encoding="utf-8")
    start, end = source.index("  function difference("), source.index("  // ---- a row as elements")
    code = "pairs => { const LEAST = 0.25, MOST = 4000000;" + source[start:end]
    found = seen.page.evaluate(code + "return pairs.map(([a, b]) => difference(a, b)); }", pairs)
    for (first, second), theirs in zip(pairs, found, strict=True):
        ours = difference(first, second)
        assert [[*part] for part in ours.parts if part.text] == [p for p in theirs["parts"] if p[1]], (first, second)
        assert ours.note == theirs["note"]
        assert "".join(part.text for part in ours.parts if part.kind != "removed") == second


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(look, file: Path, width: int, scheme: str):
    page = look(file, width, color_scheme=scheme).page
    wide, narrow = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= narrow
    faint = page.evaluate(CONTRAST)
    assert faint == [], f"contrast below 4.5: {faint}"


CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => { const c = [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
  const back = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const faint = [];
  for (const e of document.querySelectorAll("main *, header *, footer *")) {
    if (e.closest("svg, option, [hidden], :disabled") || !e.checkVisibility()) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(back(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push([e.tagName, e.className, ratio.toFixed(2), e.textContent.slice(0, 30)]);
  }
  return faint.slice(0, 5);
}"""


def test_it_prints_in_black_on_white_without_controls(look, file: Path):
    page = look(file, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls, nav, .pager, .copy").evaluate_all("all => all.every(e => !e.checkVisibility())")
    page.set_viewport_size({"width": 700, "height": 900})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    marks = page.evaluate(
        """['ins', 'del'].map(t => getComputedStyle(document.querySelector('#rows ' + t)).textDecorationLine)"""
    )
    assert marks == ["underline", "line-through"], "differences are not told by colour alone"


def test_headings_labels_and_keys(seen: Seen):
    page = seen.page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    unnamed = "[...document.querySelectorAll('input,select')].filter(e => !e.labels.length).map(e => e.id)"
    assert page.evaluate(unnamed) == []
    assert page.evaluate("[...document.querySelectorAll('th')].filter(t => !t.scope).length") == 0
    assert page.locator("#count").get_attribute("aria-live") == "polite"
    page.get_by_label("Search").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_command_is_copied(look, file: Path):
    seen = look(file, permissions=["clipboard-read", "clipboard-write"])
    seen.page.locator(".copy").first.click()
    seen.page.get_by_text("Copied").wait_for()
    said = seen.page.evaluate("navigator.clipboard.readText()")
    assert said == f"assent eval a b --prompts p.jsonl --out {file.parent}-again"


def test_nothing_in_any_field_runs(look, tmp_path: Path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, f"eval/accuracy{NASTY}": 0.5}) + "\n")
    said = [{"step": s, "prompt": [{"role": NASTY, "content": NASTY}], "response": NASTY, NASTY: 1.0} for s in (0, 1)]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    (run / "resolved.yaml").write_text(NASTY, encoding="utf-8", errors="replace")
    (run / "environment.json").write_text(json.dumps({"command": NASTY, "command_line": NASTY, NASTY: NASTY}))
    (run / "data.json").write_text(json.dumps({"files": [{"file": NASTY, "skipped": {NASTY: 1}}], NASTY: [NASTY]}))
    table = made(("sft" + NASTY, "ppo" + NASTY), NASTY)
    seen = look(written(table, tmp_path / "evaluation", NASTY, runs=(replace(read_run(run), name=NASTY),)))
    page = seen.page
    for label, value in (("Answers of", "1"), ("Show", "all"), ("Answers of", "0"), ("Order", "up")):
        page.get_by_label(label).select_option(value)
    page.get_by_label("Search").fill("onerror")
    page.wait_for_function("() => CSS.highlights.get('found') !== undefined")
    assert page.locator("#rows article").count() == 10
    assert page.evaluate("window.ran") is None and page.locator("img, iframe, object").count() == 0
    assert page.locator("script").count() == 2 and seen.console == [] and len(seen.requests) == 1
    text = page.inner_text("body")
    assert "<script>window.ran = 1</script>" in text and "{{ 7*7 }}" in text and "\\x00" in text
    page.evaluate("() => { const b = document.createElement('button'); b.setAttribute('onclick', 'window.ran = 2');"
                  "document.body.append(b); b.click(); const s = document.createElement('script');"
                  "s.textContent = 'window.ran = 3'; document.body.append(s); }")  # fmt: skip
    assert page.evaluate("window.ran") is None, "not even a script that got in would run"
