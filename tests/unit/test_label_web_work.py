"""An annotator's pages and the interface for machines: what is saved, what is refused in words, and what nobody is
shown."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

from assent.data.records import Message
from assent.people.kinds import KINDS, LabelError
from assent.people.store import accounts, drafts, items, labels, projects, queue
from assent.people.task import HELPSTEER, Item, TaskDefinition
from assent.people.web import forms, render, sheet, work
from assent.people.web.app import STATUS
from assent.people.web.sheet import sheet_of
from tests.label_site import JSON, SECRET, Site, form, item, post


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def saved(site: Site) -> list[Any]:
    with site.store.reading() as c:
        return list(labels.labels(c, site.project, purpose=None))


# ---- from a form to a label and back


def drawn(kind: str, draw: random.Random, count: int) -> dict[str, Any]:
    """A label of a kind, by chance."""
    match kind:
        case "pair":
            verdict = draw.choice(["better", "better", "tie", "both_bad", "cannot_judge"])
            better = draw.randrange(2) if verdict == "better" else None
            return {"verdict": verdict, "better": better, "strength": None if better is None else draw.randint(1, 3)}
        case "ranking":
            order = draw.sample(range(count), count)
            cut = draw.randint(1, count)
            return {"levels": [level for level in (sorted(order[:cut]), sorted(order[cut:])) if level]}
        case "best":
            return {"best": draw.choice([None, *range(count)])}
        case "attributes":
            return {"scores": [{name: draw.randint(0, 4) for name in HELPSTEER} for _ in range(count)]}
        case "yesno":
            return {"labels": [draw.choice([True, False, None]) for _ in range(count)]}
        case "edit":
            return {"text": "a\n b ", "from": draw.choice([None, *range(count)])}
    spans = [{"answer": a, "start": 3 * a, "end": 3 * a + 2, "label": "wrong"} for a in range(count)]
    return {"spans": [span | ({"comment": "why"} if draw.random() < 0.5 else {}) for span in spans]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_says_the_label_that_filled_it(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(40):
        count = 2 if kind == "pair" else draw.randint(2, 9)
        item = Item(
            (Message("user", "q"),), tuple(f"{which} a long enough answer with words" for which in range(count))
        )
        task = TaskDefinition("t", kind, attributes=dict(HELPSTEER) if kind == "attributes" else {}, labels=("wrong",))
        shown = tuple(draw.sample(range(count), count))
        value = drawn(kind, draw, count) | ({"comment": "because"} if draw.random() < 0.5 else {})
        KINDS[kind].check(value, item, task)
        fields = forms.fields_of(task, shown, value)
        assert forms.value_of(task, item, shown, fields) == value
        if kind in ("pair", "best", "edit") and "choice" not in fields:
            continue
        turned = forms.value_of(task, item, tuple(reversed(shown)), fields)
        assert kind != "pair" or value["better"] is None or turned["better"] == 1 - value["better"]


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("pair", {}, "say which answer is better"), ("pair", {"choice": "left-9"}, "strength must be"),
        ("pair", {"choice": "x"}, "verdict must be one of"), ("ranking", {"rank-0": "1"}, "Answer B has no place yet"),
        ("ranking", {"rank-0": "1" * 5000, "rank-1": "2"}, "Answer A has no place"),
        ("best", {"best": "7"}, "no answer at place '7'"), ("best", {"best": "-1"}, "no answer at place"),
        ("attributes", {"score-0-helpfulness": "3"}, "Answer A: correctness is not rated"),
        ("yesno", {"label-0": "yes", "label-1": "maybe"}, "Answer B: neither yes nor no"),
        ("edit", {"text": "  "}, "is empty"), ("spans", {"spans": "nonsense"}, "came damaged"),
        ("spans", {"spans": "[{}]"}, "came damaged"), ("spans", {"spans": "[1]"}, "came damaged"),
        ("spans", {"quote-0": "no such words"}, "is not there as it is written"),
    ],
)  # fmt: skip
def test_a_form_that_says_no_label_says_what_is_missing(kind: str, fields: dict[str, str], words: str) -> None:
    item = Item((Message("user", "q"),), ("one answer", "another answer"))
    task = TaskDefinition("t", kind, attributes=dict(HELPSTEER) if kind == "attributes" else {}, labels=("wrong",))
    with pytest.raises(LabelError, match=words):
        KINDS[kind].check(forms.value_of(task, item, (1, 0), fields), item, task)


def test_an_answer_left_as_it_is_keeps_its_line_ends() -> None:
    item = Item((Message("user", "q"),), ("one\r\ntwo", "x"))
    task = TaskDefinition("t", "edit")
    value = forms.value_of(task, item, (1, 0), {"text": "one\r\ntwo", "from": "1"})
    assert value == {"text": "one\r\ntwo", "from": 0}
    assert forms.value_of(task, item, (1, 0), {"text": "one\r\n2", "from": "1"})["text"] == "one\n2"


# ---- what happens to a form


def test_a_label_is_saved_once_however_often_it_is_sent(site: Site) -> None:
    client = site.people["ann"]
    site.now += 40
    fields = form(client) | {"choice": "left-2", "comment": " why not "}
    site.now += 12
    for _ in range(3):
        answer = post(client, "/p/pairs/label", fields | {"seconds": "500"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/p/pairs")
    (label,) = saved(site)
    better = label.shown[0]
    assert label.value == {"verdict": "better", "better": better, "strength": 2, "comment": " why not "}
    assert label.seconds == 12.0
    stale = post(client, "/p/pairs/label", fields | {"choice": "tie"})
    assert stale.status_code == 409 and "with another answer" in stale.text
    assert len(saved(site)) == 1


def test_by_script_the_answer_is_json(site: Site) -> None:
    client = site.people["ann"]
    fields = form(client)
    refused = post(client, "/p/pairs/label", fields, **JSON)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "label")
    assert post(client, "/p/pairs/label", fields | {"choice": "tie"}, **JSON).json() == {"next": "/p/pairs"}
    assert post(client, "/p/pairs/renew", form(client), **JSON).json() == {"seconds": 1800.0}


def test_what_was_written_stays_where_something_is_missing(site: Site) -> None:
    client = site.people["ann"]
    answer = post(client, "/p/pairs/label", form(client) | {"comment": "<b>my words</b>"})
    assert answer.status_code == 422 and "say which answer is better" in answer.text
    assert "&lt;b&gt;my words&lt;/b&gt;</textarea>" in answer.text


def test_an_answer_of_100_kb_is_refused_in_words_and_stays(site: Site) -> None:
    client, words = site.people["ann"], "ä" * 100_001
    answer = post(client, "/p/pairs/label", form(client) | {"choice": "tie", "comment": words})
    assert answer.status_code == 413 and "100,000 are taken. Nothing is lost" in answer.text and words in answer.text
    answer = post(client, "/p/pairs/label", form(client) | {"choice": "tie", "comment": words[:20_000]})
    assert answer.status_code == 422 and "at most 10,000 are kept. Shorten it." in answer.text
    assert not saved(site)


def test_a_lease_that_ran_out_is_told_and_kept(site: Site) -> None:
    ann, bob = site.people["ann"], site.people["bob"]
    fields = form(ann) | {"choice": "right-3"}
    site.now += 3600
    form(bob)
    lost = post(ann, "/p/pairs/label", fields)
    assert lost.status_code == 409 and "somebody else has it now" in lost.text and "Send it again" in lost.text
    assert 'name="choice" value="right-3"' in lost.text
    with site.store.reading() as c:
        slot = queue.slot_of(c, int(fields["slot"]))
        assert drafts.draft(c, slot) == {"verdict": "better", "better": slot.shown[1], "strength": 3}
    assert post(ann, "/p/pairs/renew", fields, **JSON).json()["error"]["code"] == "lease"
    free = form(ann) | {"choice": "tie"}
    site.now += 3600
    assert post(ann, "/p/pairs/label", free).status_code == 303  # nobody else has it: it is simply taken


def test_a_stale_form_and_a_withdrawn_item_are_told(site: Site) -> None:
    client = site.people["ann"]
    first = form(client)
    post(client, "/p/pairs/label", first | {"choice": "tie"})
    again = post(client, "/p/pairs/label", first | {"choice": "tie", "request": "another"})
    assert again.status_code == 409 and "answered already" in again.text and "Send it again" not in again.text
    fields = form(client)
    with site.store.writing() as c:
        lead = accounts.user(c, "lea")
        items.withdraw(c, queue.slot_of(c, int(fields["slot"])).item.id, lead, "broken", site.now)
    gone = post(client, "/p/pairs/label", fields | {"choice": "tie"})
    assert gone.status_code == 410 and "was withdrawn" in gone.text
    for slot, status in (("9999", 404), ("", 422), ("x", 422), ("9" * 30, 422)):
        assert post(client, "/p/pairs/label", fields | {"slot": slot, "choice": "tie"}).status_code == status
    theirs = form(site.people["bob"])["slot"]
    assert post(client, "/p/pairs/label", fields | {"slot": theirs, "choice": "tie"}).status_code == 404


def test_skip_undo_and_the_page_of_ones_own(site: Site) -> None:
    client = site.people["ann"]
    fields = form(client)
    assert post(client, "/p/pairs/skip", fields).status_code == 422
    assert post(client, "/p/pairs/skip", fields | {"reason": "It disturbs me"}).headers["location"].endswith("skipped")
    assert "Skipped: It disturbs me" in client.get("/p/pairs/mine").text
    post(client, "/p/pairs/label", form(client) | {"choice": "left-3"})
    page = client.get("/p/pairs/mine").text
    assert "A is much better" in page or "A much better" in page, page
    fields = form(client)
    site.now += 1
    undone = post(client, "/p/pairs/undo", fields)
    assert undone.headers["location"] == "/p/pairs?said=undone"
    page = client.get("/p/pairs?said=undone").text
    assert 'value="left-3" data-key="1" checked' in page and "is taken back" in page
    assert post(client, "/p/pairs/release", form(client)).headers["location"] == "/"


def test_a_database_that_another_program_holds_is_told(site: Site, tmp_path: Path) -> None:
    client = site.people["ann"]
    fields = form(client) | {"choice": "tie"}
    holder = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        answer = post(client, "/p/pairs/label", fields, **JSON)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy") and answer.headers["retry-after"]
    assert "send it again in a moment" in answer.json()["error"]["message"] and str(tmp_path) not in answer.text
    assert post(client, "/p/pairs/label", fields).status_code == 303


def test_every_error_of_the_store_has_its_status() -> None:
    from assent.people.store import errors

    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.StoreError)]
    for kind in kinds:
        status = next(STATUS[each] for each in kind.__mro__ if each in STATUS)
        assert status[0] != 500 or kind is errors.StoreError, kind


def test_when_all_is_done(tmp_path: Path) -> None:
    site = Site(tmp_path, count=1)
    ann, bob = site.people["ann"], site.people["bob"]
    fields = form(ann)
    assert "with other annotators" in bob.get("/p/pairs").text
    post(ann, "/p/pairs/label", fields | {"choice": "tie"})
    assert "All done" in ann.get("/p/pairs").text and "Undo my last label" in ann.get("/p/pairs").text
    site.close()


# ---- blind


def test_annotators_are_shown_nothing_that_would_bias_them(tmp_path: Path) -> None:
    site = Site(tmp_path, "kind: pair\noverlap: 2\nsecond_pass: 0.5\ngold: g.jsonl\ngold_share: 0.5\nseed: 7")
    with site.store.writing() as c:
        gold = [Item((Message("user", f"gold {i}?"),), ("a", "b"), (SECRET, SECRET)) for i in range(3)]
        expected = [{"verdict": "better", "better": 0, "strength": 1}] * 3
        items.add_items(c, site.project, gold, "gold", expected)
    post(site.people["bob"], "/p/pairs/label", form(site.people["bob"]) | {"choice": "tie", "comment": "bob's words"})
    client, seen = site.people["ann"], set()
    for _ in range(9):
        page = client.get("/p/pairs").text
        if 'id="work"' not in page:
            break
        given = client.get("/api/p/pairs/next", headers=site.api("ann")).text
        fields = form(client)
        with site.store.reading() as c:
            slot = queue.slot_of(c, int(fields["slot"]))
        seen.add(slot.purpose)
        for text in (page, given, client.get("/p/pairs/mine").text, client.get("/p/pairs/instructions").text):
            for word in (SECRET, 'gold"', 'second"', "screening", "adjudication", "bob", "policies", "expected"):
                assert word not in text, word
        assert "meta" not in json.loads(given)["item"] and "purpose" not in json.loads(given)
        post(client, "/p/pairs/label", fields | {"choice": "left-1"})
    assert "gold" in seen and "work" in seen
    site.close()


def test_the_page_names_answers_by_their_place_alone(site: Site) -> None:
    pages = {}
    for name in ("ann", "bob"):
        fields = form(site.people[name])
        with site.store.reading() as c:
            slot = queue.slot_of(c, int(fields["slot"]))
        pages[slot.shown] = site.people[name].get("/p/pairs").text.split('class="answers')[1].split('class="dock')[0]
        assert sheet_of(slot, {}, 0.0).answers[0].raw == slot.item.content.responses[slot.shown[0]]
    for shown, page in pages.items():
        assert page.index(f"answer {shown[0]} to") < page.index(f"answer {shown[1]} to")


# ---- machines


def test_a_machine_labels_by_the_interface(site: Site) -> None:
    client, headers = site.people["nobody"], site.api()

    def ask(path: str, body: dict[str, Any]) -> Any:
        return client.post(f"/api/p/pairs/{path}", json=body, headers=headers)

    given = client.get("/api/p/pairs/next", headers=headers).json()
    assert given["item"]["responses"] == ["answer 0 to 0", "answer 1 to 0"] and sorted(given["shown"]) == [0, 1]
    assert given["task"]["kind"] == "pair" and given["task"]["strength"] == 3 and given["seconds"] == 1800
    body = {"slot": given["slot"], "request": "r1", "value": {"verdict": "tie"}, "seconds": 2.5}
    assert ask("label", body).json()["repeated"] is False and ask("label", body).json()["repeated"] is True
    assert ask("label", body | {"value": {"verdict": "both_bad"}}).status_code == 409
    given = client.get("/api/p/pairs/next", headers=headers).json()
    assert ask("skip", {"slot": given["slot"], "request": "r2", "reason": "cannot"}).status_code == 200
    assert ask("undo", {"request": "r3"}).json()["slot"] == given["slot"]
    assert ask("release", {"slot": given["slot"]}).json() == {}
    assert client.get("/api/p/pairs/progress", headers=headers).json() == {
        "mine": 1, "waiting": 5, "items": 6, "done": 1,
    }  # fmt: skip
    assert saved(site)[0].seconds == 2.5


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("label", {}, 422, "needs a value"), ("label", {"value": {}}, 422, "needs its slot"),
        ("label", {"value": {}, "slot": True}, 422, "needs its slot"),
        ("label", {"value": {}, "slot": 999}, 404, "no slot 999"),
        ("label", {"value": {}, "slot": 1, "request": ""}, 422, "a word of its own"),
        ("label", {"value": {}, "slot": 1, "request": "a\nb"}, 422, "characters of ASCII"),
        ("undo", {"request": "é"}, 422, "characters of ASCII"),
        ("label", {"value": {}, "slot": 1, "request": "r", "seconds": "x"}, 422, "seconds must be"),
        ("label", {"value": {"verdict": "x"}, "slot": 1, "request": "r"}, 422, "verdict must be one of"),
        ("label", {"value": {"comment": "a" * 100_001}, "slot": 1}, 413, "100,000 are taken"),
        ("skip", {"slot": 1, "request": "r"}, 422, "needs a reason"),
        ("undo", {"request": "r"}, 404, "nothing to undo"),
    ],
)  # fmt: skip
def test_the_interface_says_what_is_wrong(site: Site, path: str, body: Any, status: int, words: str) -> None:
    client = site.people["nobody"]
    client.get("/api/p/pairs/next", headers=site.api())
    answer = client.post(f"/api/p/pairs/{path}", json=body, headers=site.api())
    assert answer.status_code == status and words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"), ("{", "Expecting property name"), ("[]", "no JSON object"),
        ('{"a": NaN}', "NaN is no number"), ("[" * 100_000, "nested too deeply"), (b'{"a": "\xff"}', "in UTF-8"),
        ('{"value": {"verdict": "tie", "verdict": "both_bad"}}', "'verdict' stands twice"),
        ('{"seconds": ' + "1" * 5000 + "}", "no JSON in UTF-8"), ("{}".encode("utf-16"), "in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(site: Site, text: str | bytes, words: str) -> None:
    kind = {"Content-Type": "application/json"}
    answer = site.people["nobody"].post("/api/p/pairs/label", content=text, headers=site.api() | kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "json")
    assert words in answer.json()["error"]["message"]


def test_only_plain_json_is_read(site: Site) -> None:
    client, body = site.people["nobody"], b"{}"
    for headers, words in (
        ({}, "Content-Type: application/json"), ({"Content-Type": "text/plain"}, "Content-Type: application/json"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "compressed"),
    ):  # fmt: skip
        answer = client.post("/api/p/pairs/label", content=body, headers=site.api() | headers)
        assert answer.status_code == 415 and words in answer.json()["error"]["message"]


@pytest.mark.parametrize("seconds", ["1e999", "-1", "1" + "0" * 400, "true", '"1"'])
def test_a_time_that_no_page_could_show_is_refused(site: Site, seconds: str) -> None:
    """An infinite one would be in the way of every page with a median."""
    client = site.people["nobody"]
    slot = client.get("/api/p/pairs/next", headers=site.api()).json()["slot"]
    body = f'{{"slot": {slot}, "request": "r", "value": {{"verdict": "tie"}}, "seconds": {seconds}}}'
    headers = site.api() | {"Content-Type": "application/json"}
    answer = client.post("/api/p/pairs/label", content=body, headers=headers)
    assert answer.status_code == 422 and "seconds must be a number" in answer.json()["error"]["message"]
    rows = [{**ANNOTATED, "meta": {"annotated": [{"annotator": "x", "value": {"verdict": "tie"}, "seconds": 0}]}}]
    text = json.dumps({"rows": rows}).replace('"seconds": 0', f'"seconds": {seconds}')
    told = client.post(
        "/api/p/pairs/items", content=text, headers=site.api("lea") | {"Content-Type": "application/json"}
    )
    assert told.json()["refused"] == 1 and "expected a number of seconds" in told.json()["problems"][0]
    assert not saved(site)


ANNOTATED = {
    "prompt": [{"role": "user", "content": "Once more?"}],
    "responses": [{"messages": [{"role": "assistant", "content": text}]} for text in ("yes", "no")],
    "feedback": [],
}


def test_the_same_request_of_two_people_is_two_requests(site: Site) -> None:
    for name in ("ann", "bob"):
        fields = form(site.people[name]) | {"choice": "tie", "request": "one"}
        assert post(site.people[name], "/p/pairs/label", fields).status_code == 303
    assert [each.name for each in saved(site)] == ["ann", "bob"]


def test_a_clock_that_is_set_back_takes_back_the_last_answer_all_the_same(site: Site) -> None:
    client = site.people["ann"]
    post(client, "/p/pairs/label", form(client) | {"choice": "left-1"})
    site.now -= 86_400
    second = form(client)
    post(client, "/p/pairs/label", second | {"choice": "right-1"})
    post(client, "/p/pairs/undo", form(client))
    assert form(client)["slot"] == second["slot"]
    assert [each.value["verdict"] for each in saved(site) if each.current] == ["better"]


def test_leads_take_labels_out_and_put_items_in(site: Site) -> None:
    client, lead = site.people["nobody"], site.api("lea")
    texts = [{"messages": [{"role": "assistant", "content": text}]} for text in ("yes", "no")]
    prompt = [{"role": "user", "content": "New?"}]
    rows = [{"prompt": prompt, "responses": texts[:count], "feedback": []} for count in (2, 1)]
    answer = client.post("/api/p/pairs/items", json={"rows": rows}, headers=lead).json()
    assert answer.get("items"), answer
    assert answer["items"] == 1 and answer["refused"] == 1 and "/tmp" not in json.dumps(answer)
    post(site.people["ann"], "/p/pairs/label", form(site.people["ann"]) | {"choice": "left-3"})
    lines = client.get("/api/p/pairs/export?format=trl", headers=lead).text.splitlines()
    assert [set(json.loads(line)) >= {"chosen", "rejected"} for line in lines]
    for _ in range(600):
        found = client.get("/api/p/pairs/agreement", headers=lead).json()
        if found["live"] is not None and found["behind"] == 0:
            break
        time.sleep(0.1)
    assert found["live"]["labels"] == 1 and "ann" in found["live"]["annotators"]
    listed = client.get("/api/p/pairs/export?format=argilla", headers=lead).json()
    assert isinstance(listed, list) and listed
    wrong = client.get("/api/p/pairs/export?format=trll", headers=lead)
    assert wrong.status_code == 422 and "trl" in wrong.json()["error"]["message"]
    for body in ({}, {"rows": []}, {"rows": [1]}, {"rows": [{"a": 1}], "format": 3}):
        assert client.post("/api/p/pairs/items", json=body, headers=lead).status_code == 422


# ---- what others wrote, as HTML


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("**b** `c` ~~s~~", ("<strong>b</strong>", "<code>c</code>", "<s>s</s>")),
        ("```python\nif x < 1: pass\n```", ('class="c-k">if</span>', "&lt;")),
        ("```nosuch\na<b\n```", ("a&lt;b",)),
        ("$x^2$ and \\(y_1\\)", ("<msup><mi>x</mi><mn>2</mn></msup>", "<msub><mi>y</mi><mn>1</mn></msub>")),
        ("\\[\na\n- b\n\\]", ('class="formula"', 'display="block"', "<mo>−</mo>")),
        ("It costs $5 and $10.", ("It costs $5 and $10.",)),
        ("US$20 to US$30. `$HOME`, $A:$B", ("US$20 to US$30. <code>$HOME</code>, $A:$B",)),
        ("$x$ is the $n$th of 5", ("<mi>x</mi></mrow></math> is", "<mi>n</mi></mrow></math>th of 5")),
        ("\\[\\begin{aligned}a&=b\\\\[2pt]&=c\\end{aligned}\\]", ('columnalign="right"><mi>a</mi>', "<mi>c</mi>")),
        ("$$a \\\\ b$$", ("<mtr><mtd><mi>a</mi></mtd></mtr><mtr><mtd><mi>b</mi>",)),
        ("\\begin{gather}a\\\\b\\end{gather}", ("<mtr><mtd><mi>a</mi></mtd></mtr><mtr>",)),
        ("$a \\\\ b$", ("<code>$a \\\\ b$</code>",)),
        ("$$\\begin{rcases}a\\end{rcases}$$", ('<pre class="code">$$\\begin{rcases}',)),
        ("$\\operatorname*{arg\\,max}_x \\text{5\\%}$", ("<mo>argmax</mo>", "<mtext>5%</mtext>")),
        ("שלום\n\n- a\n  - ב", ('<p dir="auto">שלום</p>', '<ul dir="auto">', "<ul>\n<li>ב")),
        ("|a|b|\n|-|-:|\n|1|2|", ('<table dir="auto">', '<td class="right">2</td>')),
        ("![cat](http://x.org/c.png)", ('<a href="http://x.org/c.png"', "[image: cat]")),
        ("[a](https://a.org)", ('href="https://a.org"', 'rel="noopener noreferrer nofollow"', 'target="_blank"')),
        ("\\(\\frac{\\)", ("<code>\\(\\frac{\\)</code>",)),
        ("$\\text{<img src=x>}$", ("<code>$\\text{&lt;img src=x&gt;}$</code>",)),
    ],
)  # fmt: skip
def test_markdown_code_and_maths_are_set(text: str, parts: tuple[str, ...]) -> None:
    made = render.markdown(text)
    for part in parts:
        assert part in made


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>", "<img src=x onerror=x>", "[a](javascript:x)", "[a](data:text/html,x)", "<svg onload=x>",
        "![a](javascript:x)", "$\\href{javascript:x}{y}$", "$\\text{<script>x</script>}$", "[a](vbscript:x)",
        "$\\text{</mtext></math><img src=x onerror=y>}$", "<a href='javascript:x'>", "```<script>\nx\n```",
        "[a](https://a.org \"' onclick=x\")", "$\\style{color:red}{x}$", "&lt;script&gt;x",
        "<math><mi//xlink:href='x'>",
    ],
)  # fmt: skip
def test_nothing_in_a_text_becomes_an_element_that_runs(text: str) -> None:
    made = str(render.markdown(text))
    opened = [part.split(">")[0].split() for part in made.split("<")[1:]]
    for tag, *attributes in (part for part in opened if part):
        assert tag.strip("/") in render._TAGS, made
        for attribute in attributes:
            name = attribute.split("=")[0]
            assert not name.startswith("on") and name not in ("style", "src"), made
    assert 'href="javascript' not in made and 'href="data' not in made and 'href="vbscript' not in made


def test_hostile_texts_take_no_time_and_raise_nothing() -> None:
    hostile = ("[" * 15_000, "*a" * 9_000, "\\[\n" * 9_000, "$x$" * 9_000, "> " * 9_000, "![" * 9_000, "`" * 50_000,
               "|a" * 3_000 + "\n" + "|-" * 3_000, "$" + "{" * 1_900 + "$", "\\begin{align}" * 3_000, "a" * 400_000,
               "- " * 9_000, "\x00\ud800\r\n")  # fmt: skip
    for text in hostile:
        begun = time.monotonic()
        render.markdown(text).encode("utf-8")
        assert time.monotonic() - begun < 30, text[:20]


def test_a_plain_text_keeps_every_place() -> None:
    text = "a\r\nb\x00c\u202ed\ud800<&>\"'e"
    shown = render.shown(text)
    assert len(shown) == len(text) and "\r\n" in shown
    assert render.plain("a\r\nb<") == "a&#13;\nb&lt;" and "\x00" not in shown and "\u202e" not in shown


def test_the_pace_is_the_middle_of_the_latest(site: Site) -> None:
    client = site.people["ann"]
    for seconds in (10, 90, 20):
        fields = form(client) | {"choice": "tie"}
        site.now += seconds
        post(client, "/p/pairs/label", fields)
    assert "20 s each" in client.get("/p/pairs").text
    with site.store.reading() as c:
        user = accounts.user(c, "ann")
        latest = labels.history(c, projects.project(c, "pairs"), user, 20)
    assert work.pace_of(latest) == 20.0 and work.pace_of([]) is None


def test_a_draft_is_of_one_item_in_one_database() -> None:
    assert sheet._draft(1, item(0)) == sheet._draft(1, item(0))
    assert len({sheet._draft(1, item(0)), sheet._draft(1, item(1)), sheet._draft(2, item(0))}) == 3


@pytest.mark.parametrize(
    ("levels", "keys"),
    [(range(5), "01234"), (range(1, 6), "12345"), (range(1, 11), "1234567890"), (range(11), "0123456789-"),
     (range(-3, 4), "1234567"), (range(90, 101), "1234567890-")],
)  # fmt: skip
def test_every_level_has_a_key(levels: range, keys: str) -> None:
    assert "".join(sheet._level_keys(levels)) == keys
