"""The pages of the label server in a real browser: by keyboard alone, on a phone, without scripts, with texts that want
to run, and when something goes wrong: two tabs, a lease that ran out, no connection."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assent.data.records import Message
from assent.people.task import Item, TaskDefinition
from tests.browser import ARGUMENTS, CHROMIUM, sync_playwright

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("sqlalchemy")

PASSWORD = "a long password"
PATIENCE = 60_000
"""Milliseconds: the machine may be busy."""
NASTY = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\"'><svg onload=window.ran=1> {{ 7*7 }} "
    "[l](javascript:window.ran=1) ![i](javascript:window.ran=1) <a href='javascript:window.ran=1'>a</a> \x00\u202e "
    "$\\href{javascript:window.ran=1}{x}$ $\\text{</math><script>window.ran=1</script>}$ </textarea><script>window.ran="
    "1</script> \r\n&lt;b&gt;"
)
WORDS = "Paris is the capital 😀 of France, and\nit lies on the Seine."
TASKS: dict[str, dict[str, Any]] = {
    "pair": {"kind": "pair"},
    "ranking": {"kind": "ranking"},
    "best": {"kind": "best"},
    "attributes": {"kind": "attributes"},
    "yesno": {"kind": "yesno"},
    "edit": {"kind": "edit"},
    "spans": {"kind": "spans", "labels": ("wrong", "rude")},
}
ANSWERS = {"pair": 2, "ranking": 4, "best": 4, "attributes": 2, "yesno": 2, "edit": 2, "spans": 2}


class Served:
    """A label server in a thread, with a clock that tests can turn."""

    def __init__(self, folder: Path) -> None:
        from assent.people.store import Store, accounts, items, projects
        from assent.people.taskfile import load_task
        from assent.people.web.app import application

        self.ahead = 0.0
        self.cookies: dict[str, Any] = {}
        self.store = Store.open(folder / "labels.db")
        with self.store.writing() as c:
            self.people = [accounts.add_user(c, name, PASSWORD, "annotator", None) for name in ("ann", "bob")]
            for name, options in TASKS.items():
                body = {"name": name, "title": f"The {name}s", "items": "x.jsonl", "instructions": "**Read** both."}
                body["examples"] = [{"prompt": "2+2?", "responses": ["4", "5"], "answer": "A is right", "why": "sum"}]
                task = load_task(json.dumps(body | options), "t.yaml")
                self._add(c, task, accounts, items, projects)
            nasty = {"title": NASTY, "question": NASTY, "instructions": NASTY, "labels": ["<b>wrong", "'\">rude"]}
            nasty["examples"] = [{"prompt": NASTY, "responses": [NASTY], "answer": NASTY, "why": NASTY}]
            body = {"name": "nasty", "kind": "spans", "items": "x.jsonl"} | nasty
            text = json.dumps(body).replace("\\u0000", "")
            self._add(c, load_task(text, "t.yaml"), accounts, items, projects, NASTY)
        self.app = application(self.store, clock=lambda: time.time() + self.ahead)
        self.place = socket.socket()
        self.place.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.place.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.place]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def _add(self, c: Any, task: TaskDefinition, accounts: Any, items: Any, projects: Any, text: str = WORDS) -> None:
        project = projects.put_project(c, task)
        count = ANSWERS.get(task.name, 2)
        turns = tuple(Message("assistant" if i % 2 else "user", f"turn {i}. {text * 9}") for i in range(6))
        rows = [
            Item((*turns[: 0 if i else 6], Message("user", f"Question {i}? {text}")), answers(i, count, text))
            for i in range(30)
        ]
        items.add_items(c, project, rows)
        for user in self.people:
            accounts.add_member(c, project, user, "annotator", None)

    def labels(self, name: str) -> list[Any]:
        """All answers of a project that hold, the oldest first."""
        from assent.people.store import labels, projects

        with self.store.reading() as c:
            found = labels.labels(c, projects.project(c, name), purpose=None)
            return sorted(found, key=lambda each: each.id)

    def last(self, name: str) -> Any:
        return self.labels(name)[-1]

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.store.close()


def answers(number: int, count: int, text: str) -> tuple[str, ...]:
    return tuple(f"{text} Answer {which} to {number}." for which in range(count))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM is not None, "ASSENT_BROWSER asks for the tests in a browser, and no chromium is here"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("labels"))
    yield served
    served.close()


@pytest.fixture
def signed_in(browser, served) -> Iterator[Callable[..., Any]]:
    """`signed_in(name, width=..., **options)`: a page of somebody who is; what it complains of fails the test."""
    contexts, complaints = [], []
    served.ahead = 0.0
    known = served.cookies

    def opened(name: str = "ann", width: int = 1200, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.add_cookies(known.get(name, []))
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.on("console", lambda message: complaints.append(message.text) if "Security" in message.text else None)
        page.goto(f"{served.url}/")
        if name not in known:
            page.fill("[name=user]", name)
            page.fill("[name=password]", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(f"{served.url}/")
            known[name] = context.cookies()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints, complaints


def slot_of(page: Any) -> str:
    return str(page.get_attribute("#work", "data-slot"))


def saved(page: Any, press: str = "Enter") -> None:
    """Presses the key that saves, and waits for the next item."""
    before = slot_of(page)
    page.keyboard.press(press)
    moved(page, before)


def moved(page: Any, before: str) -> None:
    """Waits for another item than the one before."""
    try:
        page.wait_for_selector(f"html.js #work:not([data-slot='{before}'])")
    except Exception as error:
        raise AssertionError(f"still at {before}: {page.inner_text('#status')}") from error


def told(page: Any, text: str, where: str = "#status") -> None:
    """Waits until the page says something."""
    page.locator(where, has_text=text).wait_for()


def work(page: Any, served: Served, name: str) -> None:
    page.goto(f"{served.url}/p/{name}")
    page.wait_for_selector("html.js #work")


def keys(page: Any, *names: str) -> None:
    for name in names:
        page.keyboard.press(name)


def test_twenty_pairs_by_keyboard_alone(signed_in, served) -> None:
    page = signed_in()
    page.keyboard.press("Tab")  # the projects' page, from link to link
    for _ in range(20):
        if page.evaluate("document.activeElement.getAttribute('href')") == "/p/pair":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("html.js #work")
    assert "New here?" in page.inner_text("main")
    page.keyboard.press("?")
    assert "Read both." in page.inner_text("#help") and "A is right" in page.inner_text("#help")
    assert "A much better" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    expected = []
    for number in range(20):
        key = "1234567bn"[number % 9]
        shown = served.store
        page.keyboard.press(key)
        with shown.reading() as c:
            from assent.people.store import queue

            order = queue.slot_of(c, int(slot_of(page))).shown
        expected.append((key, order))
        saved(page)
    found = served.labels("pair")
    assert len(found) == 20 and len({each.item for each in found}) == 20
    for (key, order), each in zip(expected, found, strict=True):
        assert each.shown == order and each.value == meaning(key, order)
        assert 0 <= each.seconds < 600
    assert "20 labels by you" in page.inner_text(".pace") and "each" in page.inner_text(".pace")


def meaning(key: str, order: tuple[int, ...]) -> dict[str, Any]:
    if key in "123":
        return {"verdict": "better", "better": order[0], "strength": 4 - int(key)}
    if key in "567":
        return {"verdict": "better", "better": order[1], "strength": int(key) - 4}
    verdict = {"4": "tie", "b": "both_bad", "n": "cannot_judge"}[key]
    return {"verdict": verdict, "better": None, "strength": None}


def test_a_ranking_by_keyboard_and_by_dragging(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "ranking")
    keys(page, "3", "1", "=", "4", "2", "Backspace", "2")
    assert page.inner_text("#ranks").split() == ["Best", "first:", "A", "=", "C", "D", "B"]
    saved(page)
    each = served.last("ranking")
    a, b, c, d = each.shown
    assert each.value == {"levels": [sorted([a, c]), [d], [b]]}
    for letter in "ABCD":
        page.click(f"#ranks .chip:text-is('{letter}')")
    drag(page, "D", page.locator("#ranks [data-gap='0']"))
    assert page.inner_text("#ranks").split()[2:] == ["D", "A", "B", "C"]
    drag(page, "C", page.locator("#ranks .level:has-text('A')"))
    assert page.inner_text("#ranks").split()[2:] == ["D", "A", "=", "C", "B"]
    page.locator("#ranks .chip:text-is('B')").focus()
    keys(page, "ArrowLeft")
    assert page.inner_text("#ranks").split()[2:] == ["D", "B", "A", "=", "C"]
    page.click("#save")
    told(page, "2 labels", ".pace")
    each = served.last("ranking")
    a, b, c, d = each.shown
    assert each.value == {"levels": [[d], [b], sorted([a, c])]}


def drag(page: Any, letter: str, target: Any) -> None:
    chip = page.locator(f"#ranks .chip:text-is('{letter}')").bounding_box()
    box = target.bounding_box()
    page.mouse.move(chip["x"] + chip["width"] / 2, chip["y"] + chip["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()


def test_the_best_of_four_by_keyboard(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "best")
    page.keyboard.press("3")
    assert page.locator(".answer.chosen").count() == 1
    keys(page, "c")
    page.keyboard.type("the clearest 1 2 3")
    keys(page, "Escape")
    saved(page)
    each = served.last("best")
    assert each.value == {"best": each.shown[2], "comment": "the clearest 1 2 3"}
    page.keyboard.press("0")
    saved(page)
    assert served.last("best").value == {"best": None}


def test_attributes_answer_after_answer_by_keyboard(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "attributes")
    assert page.is_visible("#step-0") and not page.is_visible("#step-1")
    keys(page, "4", "3", "2", "1")
    assert not page.is_visible("#step-1")
    page.keyboard.press("Enter")
    told(page, "verbosity is not rated")
    page.keyboard.press("0")
    assert page.is_visible("#step-1") and "✓" in page.inner_text("#tab-0")
    keys(page, "0", "1", "2", "3", "4", "[", "ArrowUp", "ArrowDown", "4")
    saved(page)
    each = served.last("attributes")
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    scores = {each.shown[0]: (4, 3, 2, 1, 0), each.shown[1]: (0, 1, 2, 3, 4)}
    scores[each.shown[0]] = (4, 4, 2, 1, 0)
    assert each.value == {"scores": [dict(zip(names, scores[answer], strict=True)) for answer in (0, 1)]}


def test_yes_and_no_by_keyboard(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "yesno")
    keys(page, "n", "x", "ArrowUp", "y")
    saved(page)
    each = served.last("yesno")
    wanted = {each.shown[0]: True, each.shown[1]: None}
    assert each.value == {"labels": [wanted[0], wanted[1]]}


def test_an_answer_is_edited_by_keyboard(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "edit")
    page.keyboard.press("2")
    assert page.input_value("#text").startswith(WORDS)
    page.keyboard.press("Control+End")
    page.keyboard.type(" It is lovely.\nReally: s u d 1 2?")
    saved(page, "Control+Enter")
    each = served.last("edit")
    raw = f"{WORDS} Answer {each.shown[1]} to 0."
    assert each.value == {"text": f"{raw} It is lovely.\nReally: s u d 1 2?", "from": each.shown[1]}
    page.keyboard.press("e")
    page.keyboard.type("From nothing.")
    page.keyboard.press("Escape")
    saved(page)
    assert served.last("edit").value == {"text": "From nothing.", "from": None}


def test_passages_by_keyboard_and_mouse(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "spans")
    keys(page, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "1", "m")
    page.keyboard.type("an emoji")
    keys(page, "Escape", "]", "2", "Shift+ArrowRight", "2", "Backspace", "ArrowRight", "2")
    saved(page)
    each = served.last("spans")
    a, b = each.shown
    spans = {(span["answer"], span["label"]): span for span in each.value["spans"]}
    first, second = spans[a, "wrong"], spans[b, "rude"]
    assert WORDS[first["start"] : first["end"]] == "😀 of" and first["comment"] == "an emoji"
    assert len(spans) == 2 and WORDS[second["start"] : second["end"]] == "the"
    page.evaluate(
        "() => { const text = document.querySelectorAll('.markable')[1]; const node = text.firstChild;"
        "const at = node.data.indexOf('Seine'); getSelection().setBaseAndExtent(node, at - 1, node, at + 5); }"
    )
    page.click("[data-mark=wrong]")
    assert page.inner_text("#marks q") == "Seine"
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('.answers'))")
    page.click("[data-mark=rude]")  # of both answers, which no mark can be
    told(page, "Select words of one answer")
    assert page.locator("#marks q").count() == 1
    page.click(".answer:first-of-type .markable", click_count=3, position={"x": 20, "y": 36})  # the last line
    page.click("[data-mark=rude]")
    assert page.inner_text("#marks q >> nth=0").startswith("it lies on the Seine. Answer")
    page.click("#marks button >> nth=0")
    saved(page)
    each = served.last("spans")
    (span,) = each.value["spans"]
    assert span["answer"] == each.shown[1] and WORDS[span["start"] : span["end"]] == "Seine"


def pressed(page: Any, key: str, code: str, **more: Any) -> None:
    """A key of a keyboard that playwright does not have."""
    init = json.dumps({"key": key, "code": code, "bubbles": True, "cancelable": True, **more})
    page.evaluate(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {init}))")


def test_keys_of_other_keyboards(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "pair")
    for key, code, more, value in (
        ("B", "KeyB", {}, "both_bad"),  # Caps Lock
        ("&", "Digit1", {}, "left-3"),  # French
        ("т", "KeyN", {}, "cannot_judge"),  # Russian
        ("b", "KeyN", {}, "both_bad"),  # Dvorak and the like: what is printed on the key
        ("7", "Digit7", {"shiftKey": True}, "right-3"),
        ("/", "Digit3", {"shiftKey": True}, "right-3"),  # no key of this page
        ("1", "Digit1", {"ctrlKey": True}, "right-3"),  # the browser's
    ):
        pressed(page, key, code, **more)
        assert page.input_value("[name=choice]:checked") == value, key
    work(page, served, "attributes")
    pressed(page, "]", "Digit9", altKey=True)  # German, on a Mac
    assert page.is_visible("#step-1")
    pressed(page, "х", "BracketLeft")
    assert page.is_visible("#step-0")


def test_a_key_that_is_held_or_pressed_twice_answers_once(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "spans")
    count, before = len(served.labels("spans")), slot_of(page)
    page.keyboard.press("Enter")
    told(page, "Nothing is marked")
    pressed(page, "Enter", "Enter", repeat=True)
    assert len(served.labels("spans")) == count and slot_of(page) == before
    saved(page)
    told(page, "Saved. The next item.", ".unseen[aria-live]")
    assert page.evaluate("document.activeElement.id") == "main"
    assert served.last("spans").value == {"spans": []}


def test_passages_of_any_script_have_their_places(signed_in, served) -> None:
    text = "e\u0301te\u0301 👨‍👩‍👧 中文测试 नमस्ते. 𝕳i (really)...\r\nשלום"
    page = signed_in()
    work(page, served, "spans")
    found = page.evaluate("text => Texts.steps(text)", text)
    words = ["e\u0301te\u0301", "👨‍👩‍👧", "中文", "测试", "नमस्ते", ".", "𝕳i", "(", "really", ")...", "שלום"]
    assert [text[start:end] for start, end in found] == words
    long = "Ein Wort, 😀 und mehr. " * 5000
    begun = time.monotonic()
    places = page.evaluate("text => Texts.steps(text)", long)
    assert time.monotonic() - begun < 60 and len(places) == 35_000
    assert {long[start:end] for start, end in places[::7]} == {"Ein"}


def test_words_in_common_are_a_longest_common_subsequence(signed_in, served) -> None:
    page = signed_in()
    draw = random.Random(3)
    for size in (0, 1, 5, 31, 32, 33, 70, 130):
        a, b = ([draw.choice("abcdefgh"[: 2 + size % 7]) for _ in range(draw.randint(0, size))] for _ in range(2))
        found = page.evaluate(
            "([a, b]) => { const c = Texts.common(a, b); return [[...c.firsts], [...c.seconds]] }", [a, b]
        )
        firsts, seconds = map(sorted, found)
        assert [a[each] for each in firsts] == [b[each] for each in seconds]
        assert len(firsts) == longest(a, b)
    words = "([n, k]) => Array.from({length: n}, (_, i) => 'w' + (i * k) % 9973)"
    first, second = page.evaluate(words, [15_000, 7]), page.evaluate(words, [15_000, 11])
    begun = time.monotonic()
    assert page.evaluate("([a, b]) => Texts.common(a, b).firsts.size", [first, second]) > 1000
    assert time.monotonic() - begun < 60


def longest(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for j, y in enumerate(b):
            row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
    return row[-1]


def test_what_an_edit_began_from_is_what_it_says(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "edit")
    page.keyboard.press("1")
    page.keyboard.type("Mine. ")
    keys(page, "Escape", "2")
    told(page, "Your text is kept")
    assert page.input_value("[name=from]:checked") == "0" and page.input_value("#text").startswith("Mine. ")
    saved(page, "Control+Enter")
    each = served.last("edit")
    assert each.value["from"] == each.shown[0]
    keys(page, "1", "Escape", "2")  # left as it is: another one takes its place
    assert page.input_value("[name=from]:checked") == "1"


def test_ctrl_enter_in_a_reason_skips_and_saves_nothing(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "pair")
    keys(page, "1", "s")
    page.fill("[name=other]", "it is odd")
    saved(page, "Control+Enter")
    each = served.last("pair")
    assert (each.action, each.reason) == ("skip", "it is odd")


def test_time_goes_on_over_a_reload(signed_in, served) -> None:
    page = signed_in()
    page.clock.install()
    work(page, served, "yesno")
    page.clock.run_for(20_000)
    page.reload()
    page.wait_for_selector("html.js #work")
    page.clock.run_for(5_000)
    served.ahead = 40.0
    keys(page, "y", "y")
    saved(page)
    assert 20 <= served.last("yesno").seconds <= 60


def test_the_controls_leave_room_where_the_window_is_low(signed_in, served) -> None:
    page = signed_in(width=600)
    work(page, served, "pair")
    for height, place in ((800, "sticky"), (400, "static")):
        page.set_viewport_size({"width": 600, "height": height})
        assert page.evaluate("getComputedStyle(document.querySelector('.dock')).position") == place


def test_a_password_is_changed_and_other_browsers_are_signed_out(browser, served) -> None:
    from assent.people.store import accounts

    with served.store.writing() as c:
        accounts.add_user(c, "cleo", PASSWORD, "annotator", None)
    pages = []
    for _ in range(2):
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(f"{served.url}/account")
        page.fill("[name=user]", "cleo")
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{served.url}/account")
        pages.append(page)
    page, other = pages
    page.reload()
    assert "1 other browser is signed in as you" in page.inner_text("main")
    for name, text in (("password", PASSWORD), ("new", "quite another one"), ("again", "quite another one")):
        page.fill(f"[name={name}]", text)
    page.keyboard.press("Enter")
    told(page, "Your password is changed", "main")
    other.reload()
    assert "/login" in other.url
    for each in pages:
        each.context.close()


def test_skip_undo_and_what_is_begun_is_there_after_a_reload(signed_in, served) -> None:
    page = signed_in("bob")
    work(page, served, "pair")
    keys(page, "6", "c")
    page.keyboard.type("because")
    page.reload()
    page.wait_for_selector("html.js #work")
    assert page.is_checked("[value=right-2]") and page.input_value("[name=comment]") == "because"
    assert "What you had begun" in page.inner_text("#status")
    first = slot_of(page)
    saved(page)
    keys(page, "s", "2")
    saved(page)
    skipped = served.last("pair")
    assert (skipped.action, skipped.reason) == ("skip", "I do not understand the language")
    keys(page, "u")
    told(page, "is taken back", "main")
    assert slot_of(page) == str(skipped.slot)
    keys(page, "u")
    page.wait_for_selector(f"html.js #work[data-slot='{first}']")
    assert page.is_checked("[value=right-2]") and page.input_value("[name=comment]") == "because"
    page.goto(f"{served.url}/p/pair/mine")
    assert "Nothing yet." in page.inner_text("main")


def test_differences_are_marked_on_demand(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "pair")
    page.keyboard.press("d")
    marks = page.eval_on_selector_all(".shown mark.differs", "all => all.map(each => each.textContent)")
    assert sorted(marks) == ["0", "1"]
    whole = "() => [...document.querySelectorAll('.answer .shown, .answer .raw')].map(each => each.innerHTML)"
    marked = page.evaluate(whole)
    page.keyboard.press("d")
    assert page.locator("mark.differs").count() == 0 and page.evaluate(whole) != marked
    page.keyboard.press("d")
    assert page.evaluate(whole) == marked
    page.keyboard.press("d")
    page.keyboard.press("r")
    assert page.is_visible(".answer .raw") and not page.is_visible(".answer .shown")


def test_two_tabs_and_a_double_click_save_once(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "pair")
    other = page.context.new_page()
    work(other, served, "pair")
    assert slot_of(page) == slot_of(other)
    count = len(served.labels("pair"))
    page.keyboard.press("1")
    before = slot_of(page)
    page.dblclick("#save")
    moved(page, before)
    assert len(served.labels("pair")) == count + 1
    other.keyboard.press("7")
    other.keyboard.press("Enter")
    told(other, "answered already")
    assert len(served.labels("pair")) == count + 1
    other.click("text=Go on with the next item")
    moved(other, before)
    assert slot_of(other) == slot_of(page)


def test_a_lease_that_ran_out_loses_nothing(signed_in, served) -> None:
    from assent.people.store import drafts, labels, queue

    page = signed_in()
    work(page, served, "best")
    slot = int(slot_of(page))
    served.ahead = 3 * 3600.0
    other = signed_in("bob")
    served.ahead = 3 * 3600.0
    work(other, served, "best")
    with served.store.reading() as c:
        mine, theirs = queue.slot_of(c, slot), queue.slot_of(c, int(slot_of(other)))
    assert mine.item.id == theirs.item.id
    keys(page, "2")
    page.keyboard.press("Enter")
    told(page, "somebody else has it")
    assert page.is_visible("text=Send again")
    with served.store.reading() as c:
        assert drafts.draft(c, mine) == {"best": mine.shown[1]}
    with served.store.writing() as c:
        queue.release(c, theirs.id, served.people[1], time.time())
    page.click("text=Send again")
    moved(page, slot)
    with served.store.reading() as c:
        assert labels.label(c, served.last("best").id).value == {"best": mine.shown[1]}


def test_without_a_connection_it_is_kept_and_sent_later(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "yesno")
    count = len(served.labels("yesno"))
    keys(page, "y", "y")
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    told(page, "cannot be reached")
    before = slot_of(page)
    page.context.set_offline(False)
    moved(page, before)
    assert len(served.labels("yesno")) == count + 1


def test_a_form_of_another_session_says_what_to_do(signed_in, served) -> None:
    page = signed_in()
    work(page, served, "yesno")
    keys(page, "n", "n")
    page.context.clear_cookies()
    page.keyboard.press("Enter")
    told(page, "signed out")
    page.click("#status a")
    page.fill("[name=user]", "ann")
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("html.js #work")
    assert page.locator("[value=no]:checked").count() == 2
    saved(page)


def test_a_session_that_ends_while_somebody_writes_is_told_at_once(signed_in, served) -> None:
    page = signed_in()
    page.clock.install()
    work(page, served, "edit")
    page.keyboard.press("e")
    page.keyboard.type("half of it")
    page.context.clear_cookies()
    page.clock.run_for(11 * 60_000)
    page.keyboard.type(" and more")
    page.clock.run_for(2_000)
    told(page, "signed out")
    assert page.input_value("#text") == "half of it and more" and page.is_visible("#status a[href^='/login']")


def test_nothing_that_others_wrote_runs(signed_in, served) -> None:
    page = signed_in()
    answer = page.goto(f"{served.url}/p/nasty")
    page.wait_for_selector("html.js #work")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    page.keyboard.press("?")
    for path in ("", "/p/nasty/instructions", "/p/nasty/mine", "/login?next=%22%3E%3Cscript%3E", "/p/%3Cscript%3E"):
        assert page.evaluate("window.ran") is None
        assert page.locator("main script, main img, main svg, main [onerror], main [onload]").count() == 0
        hrefs = page.eval_on_selector_all("a[href]", "all => all.map(each => each.protocol)")
        assert set(hrefs) <= {"http:", "https:"}
        page.goto(served.url + path)
    work(page, served, "nasty")
    text = page.evaluate("document.querySelector('.markable').textContent")
    assert [*text][:8] == [*NASTY][:8] and len([*text]) == len(NASTY) + len(" Answer 0 to 0.")
    keys(page, "ArrowRight", "2", "m")
    page.keyboard.type(NASTY.replace("\x00", "").replace("\r\n", " "))
    page.keyboard.press("Escape")
    saved(page)
    assert page.evaluate("window.ran") is None
    page.goto(f"{served.url}/p/nasty/mine")
    assert page.evaluate("window.ran") is None and "window.ran" in page.inner_text("main")


def test_the_policy_stops_what_would_run(browser, served) -> None:
    page = browser.new_page()
    page.goto(f"{served.url}/login")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'ran = 1'; document.body.append(s) }"
    )
    assert page.evaluate("window.ran") is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_on_a_phone(signed_in, served, scheme) -> None:
    page = signed_in(width=400, color_scheme=scheme, is_mobile=True, has_touch=True)
    paths = ["/", *(f"/p/{name}{part}" for name in (*TASKS, "nasty") for part in ("", "/instructions", "/mine"))]
    for path in paths if scheme == "light" else ["/p/pair"]:
        page.goto(served.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
        ink, ground = page.evaluate(
            "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert (sum(rgb(ink)) < sum(rgb(ground))) == (scheme == "light")


def rgb(text: str) -> list[int]:
    return [int(each) for each in text[text.index("(") + 1 : -1].split(",")[:3]]


@pytest.mark.parametrize("name", TASKS)
def test_controls_have_names_and_are_reached_by_tab(signed_in, served, name) -> None:
    page = signed_in()
    work(page, served, name)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, textarea, input:not([type=hidden]), a[href], progress')]
        .filter(each => !each.getAttribute('aria-label') && !each.textContent.trim() && !each.title)
        .filter(each => !each.labels || ![...each.labels].some(label => label.innerText.trim()))
        .map(each => each.outerHTML)"""
    )
    assert not unnamed
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    for each in page.query_selector_all("[aria-labelledby]"):
        assert page.query_selector(f"#{each.get_attribute('aria-labelledby')}")
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if order[-1] == "save":
            break
    assert order[0] == "jump" and order[-1] == "save"


def test_it_works_without_a_script(browser, served) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(f"{served.url}/p/best")
    page.fill("[name=user]", "ann")
    page.fill("[name=password]", PASSWORD)
    page.click("button:has-text('Sign in')")
    count = len(served.labels("best"))
    page.click("button:has-text('Save')")
    assert "say which answer is best" in page.inner_text("#problem")
    page.check("[name=best][value='1']", force=True)
    page.click("button:has-text('Save')")
    assert len(served.labels("best")) == count + 1
    page.click("button:has-text('Undo')")
    assert page.is_checked("[name=best][value='1']")
    page.goto(f"{served.url}/p/spans")
    count = len(served.labels("spans"))
    page.fill("[name=quote-0]", "the")
    page.click("button:has-text('Save')")
    assert "is there 2 times" in page.inner_text("#problem") and page.input_value("[name=quote-0]") == "the"
    page.fill("[name=quote-0]", "the Seine")
    page.select_option("[name=mark-0]", "rude")
    page.click("button:has-text('Save')")
    (span,) = served.last("spans").value["spans"]
    assert len(served.labels("spans")) == count + 1 and span["label"] == "rude"
    assert WORDS[span["start"] : span["end"]] == "the Seine"
    context.close()
