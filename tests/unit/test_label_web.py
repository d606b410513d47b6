"""Who may do what on the label server, and what every request passes: sessions, forms that are ours, hosts, sizes."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

import httpx2
from fastapi.testclient import TestClient

from assent.people.store import accounts, sessions
from assent.people.web import security
from assent.people.web.app import application, routes
from assent.people.web.sessions import Require, inside
from assent.people.web.site import BY_ADDRESS, BY_NAME, HERE, Tries
from assent.serve import server
from assent.serve.run import listener, url_of
from tests.label_site import JSON, PASSWORD, Site, csrf_of, form, post


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("labels"))
    yield made
    made.close()


class Listening:
    """An application at a port of this machine, in a thread."""

    def __init__(self, app: Any) -> None:
        self.place, ready = listener("127.0.0.1", 0), threading.Event()
        self.server = server.Server(app, app, 10.0, ready.set)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.place])))
        self.thread.start()
        assert ready.wait(300)

    def __enter__(self) -> str:
        return url_of(self.place)

    def __exit__(self, *_: object) -> None:
        self.server._queue = type("Nothing", (), {"requests": 0, "close": lambda self: None})()  # others go on with it
        self.server.should_exit = True
        self.thread.join(300)


# ---- who may what

RANK = {"nobody": 0, "other": 1, "ann": 2, "bot": 2, "lea": 3, "adm": 4}
"""Of a project's pages; somebody without a part in it is a user, and no more."""
OPEN, USER, ANNOTATOR, LEAD, ADMIN = 0, 1, 2, 3, 4
REFUSED = {"signed_out", "token", "role", "project"}


def needed(path: str) -> int:
    """Who may use a route, by its address alone."""
    if path in ("/health", "/login", "/join/{token}"):
        return OPEN
    if path in ("/", "/logout", "/account", "/account/password", "/account/sessions"):
        return USER
    if re.fullmatch(r"/p/\{name\}/lead/people/(disable|enable|password)", path):
        return ADMIN  # an account is the server's, and works in other projects too
    lead = r"/p/\{name\}/lead(/.*)?|/api/p/\{name\}/(export|items|agreement)"
    if re.fullmatch(lead, path):
        return LEAD
    assert path.startswith(("/p/{name}", "/api/p/{name}/")), f"{path}: who may use it?"
    return ANNOTATOR


CASES = sorted({(method, route.path) for route in routes() for method in route.methods})


def guard(path: str, method: str) -> Require:
    (route,) = [each for each in routes() if each.path == path and method in each.methods]
    found = [each.call for each in route.dependant.dependencies if isinstance(each.call, Require)]
    assert len(found) == 1, f"{method} {path} does not say who may use it, or says it twice"
    return found[0]


@pytest.mark.parametrize(("method", "path"), CASES, ids=[" ".join(case) for case in CASES])
def test_every_route_lets_in_whom_it_should(site: Site, method: str, path: str) -> None:
    machines = guard(path, method).machines
    assert machines == path.startswith("/api/")
    address = re.sub(r"\{[^}]*\}", "999999", path.replace("{name}", "pairs"))
    for who, rank in RANK.items():
        if (who == "bot") > machines:
            continue
        client = site.people["nobody"] if machines else site.client(who) if path == "/logout" else site.people[who]
        headers = JSON | (site.api(who) if machines and who != "nobody" else {})
        fields = {"csrf": csrf_of(client, "/")} if method == "POST" and not machines else None
        answer = client.request(method, address, data=fields, headers=headers)
        told = answer.status_code >= 400 and answer.headers["content-type"] == "application/json"
        code = answer.json()["error"]["code"] if told else ""
        assert (code in REFUSED) == (rank < needed(path)), f"{who} {method} {path}: {answer.status_code} {code}"
        assert answer.status_code < 500 or code in ("busy",), answer.text


@pytest.mark.parametrize("path", [path for method, path in CASES if method == "POST" and "/api/" not in path])
def test_every_form_must_come_from_a_page_of_the_same_session(site: Site, path: str) -> None:
    address = path.replace("{name}", "pairs").replace("{token}", "x")
    address = re.sub(r"\{[^}]*\}", "1", address)
    client = site.client("adm")
    theirs = csrf_of(site.client("adm"), "/")
    for fields in ({}, {"csrf": ""}, {"csrf": theirs}, {"csrf": "é"}):
        answer = client.post(address, data=fields, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf")


def test_a_machine_is_known_by_its_token_alone(site: Site) -> None:
    client = site.client("lea")
    assert client.get("/api/p/pairs/progress").status_code == 401
    assert client.get("/api/p/pairs/progress", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    assert client.get("/api/p/pairs/progress", headers=site.api()).status_code == 200
    session = client.cookies["assent_session"]
    assert client.get("/api/p/pairs/progress", headers={"Authorization": f"Bearer {session}"}).status_code == 401
    with site.store.writing() as c:
        bot = accounts.add_user(c, "gone", None, "judge", None)
        accounts.add_member(c, site.project, bot, "judge", None)
        token = sessions.api_token(c, bot, None)
        sessions.revoke_tokens(c, bot, None)
    assert client.get("/api/p/pairs/progress", headers={"Authorization": f"Bearer {token}"}).status_code == 401


# ---- what every request passes


@pytest.mark.parametrize("path", ["/login", "/", "/nowhere", "/p/pairs", "/api/p/pairs/next", "/static/label.css"])
def test_every_answer_has_the_headers(site: Site, path: str) -> None:
    for name in ("nobody", "ann"):
        headers = site.people[name].get(path).headers
        for header, value in security.HEADERS.items():
            assert headers[header] == value
        assert headers["cache-control"] == (
            "public, max-age=31536000, immutable" if path.startswith("/static") else "no-store"
        )
    policy = dict(part.split(" ", 1) for part in security.POLICY.split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'" and policy["form-action"] == "'self'"
    assert "unsafe" not in security.POLICY and "http" not in security.POLICY and "*" not in security.POLICY


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("localhost:8400", True), ("127.0.0.1:1", True), ("[::1]:8400", True), ("192.168.1.7", True),
        ("labels.localhost", True), ("evil.example", False), ("localhost.evil.example", False), ("[::1", False),
        ("", False), ("a@b", False), ("localhost, evil.example", False), ("127.0.0.1\tevil", False),
        ("127.0.0.1:8400:1", False), ("LOCALHOST", True), ("127.1", False), ("[::1]x", False),
    ],
)  # fmt: skip
def test_it_answers_to_its_own_names(site: Site, host: str, fine: bool) -> None:
    answer = site.people["nobody"].get("/login", headers={"Host": host})
    assert answer.status_code == (200 if fine else 421)
    assert fine or "--public_url" in answer.text


def test_it_answers_to_the_name_of_its_proxy(site: Site) -> None:
    app = application(site.store, hosts=["box"], public_url="https://labels.example.org", clock=lambda: site.now)
    client = TestClient(app, base_url="http://labels.example.org", follow_redirects=False)
    assert client.get("/login", headers={"Host": "box:8400"}).status_code == 200
    answer = client.get("/login")
    assert answer.status_code == 200 and "Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    client.cookies.set("assent_guest", re.search(r"assent_guest=([^;]+)", answer.headers["set-cookie"])[1])
    fields = {"csrf": re.search(r'name="csrf" value="(\w+)"', answer.text)[1], "user": "ann", "password": "wrong"}
    sent = client.post("/login", data=fields, headers={"Origin": "https://labels.example.org"})
    assert sent.status_code == 401
    assert client.post("/login", data=fields, headers={"Origin": "https://other.example"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 422), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:81"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 422), ({}, 422),
    ],
)  # fmt: skip
def test_forms_of_other_sites_are_refused(site: Site, headers: dict[str, str], status: int) -> None:
    client = site.people["ann"]
    fields = {"csrf": csrf_of(client, "/"), "slot": "none"}
    assert client.post("/p/pairs/label", data=fields, headers=headers).status_code == status


def test_large_requests_are_refused_whether_or_not_they_say_so(site: Site) -> None:
    client = site.people["ann"]
    big = b"comment=" + b"a" * security.LARGEST_FORM
    kind = {"Content-Type": "application/x-www-form-urlencoded"}

    def parts() -> Iterator[bytes]:
        yield from (big[start : start + 65536] for start in range(0, len(big), 65536))

    for content in (big, parts()):
        answer = client.post("/p/pairs/label", content=content, headers=kind | JSON)
        assert answer.status_code == 413 and "Nothing of it was taken" in answer.json()["error"]["message"]
    page = client.post("/p/pairs/label", content=big, headers=kind)
    assert page.status_code == 413 and "<h1>Too large</h1>" in page.text
    lied = client.post("/p/pairs/label", content=b"a=1", headers=kind | {"Content-Length": "9" * 20})
    assert lied.status_code == 413
    assert security.FILES.fullmatch("/p/pairs/lead/import") and not security.FILES.fullmatch("/p/pairs/label")


def test_unknown_pages_and_methods_say_so(site: Site) -> None:
    assert "There is no such page." in site.people["ann"].get("/p/pairs/nothing").text
    for method, path, allowed in (
        ("GET", "/p/pairs/label", "POST"), ("PUT", "/login", "GET, HEAD, POST"), ("TRACE", "/health", "GET, HEAD"),
    ):  # fmt: skip
        answer = site.people["ann"].request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    for path, status in (("/health", 200), ("/login", 303), ("/p/pairs", 200), ("/nothing", 404)):
        assert site.people["ann"].head(path).status_code == status
    assert site.people["ann"].get("/static/../app.py").status_code == 404
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert site.people["adm"].get(path).status_code == 404


def test_a_bug_is_no_leak(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of /etc/passwd")

    monkeypatch.setattr("assent.people.web.work.queue.ahead", broken)
    answer = site.people["ann"].get("/p/pairs")
    assert answer.status_code == 500 and "its log says why" in answer.text and "passwd" not in answer.text
    assert "GET /p/{name}: RuntimeError" in caplog.text


def test_a_client_that_goes_away_is_no_failure_of_the_server(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "localhost", "content-type": "application/json", **site.api()}
    scope = {
        "type": "http", "method": "POST", "path": "/api/p/pairs/label", "raw_path": b"", "query_string": b"",
        "scheme": "http", "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(site.app(scope, receive, send))
    assert sent[0]["status"] == 400 and not caplog.records


def test_a_request_that_does_not_come_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly its bytes drip in."""
    monkeypatch.setattr(security, "PATIENCE", 0.2)

    def parts() -> Iterator[bytes]:
        yield b'{"slot": 1'
        time.sleep(0.5)
        yield b"}"

    kind = {"Content-Type": "application/json"}
    with Listening(site.app) as url, httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        answer = client.post("/api/p/pairs/label", content=parts(), headers=site.api() | kind)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "slow")
        assert client.get("/health").text == "ok\n"


def test_connections_that_send_no_request_are_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 1.0)
    with Listening(site.app) as url:
        place = urlsplit(url)
        silent = [socket.create_connection((place.hostname, place.port)) for _ in range(20)]
        for each in silent[:10]:
            each.sendall(b"POST /login HTTP/1.1\r\nHost: local")
        with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
            start = time.monotonic()
            while time.monotonic() - start < 2.0:  # one that asks is answered for as long as it likes
                assert client.get("/health").text == "ok\n"
        for each in silent:
            each.settimeout(60)
            assert each.recv(1) == b""
            each.close()


# ---- signing in and out


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, count=2)
    with made.store.writing() as c:
        ann = accounts.user(c, "ann")
        accounts.set_password(c, ann, PASSWORD, None)
    yield made
    made.close()


def sign_in(client: TestClient, user: str = "ann", password: str = PASSWORD, place: str = "/") -> Any:
    return post(client, "/login", {"csrf": csrf_of(client), "user": user, "password": password, "next": place})


def test_signing_in_and_out(fresh: Site) -> None:
    client = fresh.client()
    assert client.get("/p/pairs").headers["location"] == "/login?next=/p/pairs"
    wrong = sign_in(client, password="not it at all")
    assert wrong.status_code == 401 and "do not belong together" in wrong.text
    assert "assent_session" not in client.cookies
    assert "do not belong together" in sign_in(client, user="nobody here").text
    answer = sign_in(client, place="/p/pairs/mine")
    assert (answer.status_code, answer.headers["location"]) == (303, "/p/pairs/mine")
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/")) and "Secure" not in cookie
    assert client.get("/login").headers["location"] == "/"
    old = client.cookies["assent_session"]
    out = post(client, "/logout", {"csrf": csrf_of(client, "/p/pairs")})
    assert out.headers["location"] == "/login?said=out" and "storage" in out.headers["clear-site-data"]
    client.cookies.set("assent_session", old)
    assert client.get("/p/pairs").headers["location"].startswith("/login")


def test_a_session_ends(fresh: Site) -> None:
    client = fresh.client("ann")
    assert client.get("/p/pairs").status_code == 200
    fresh.now += sessions.SESSION + 1
    assert client.get("/p/pairs").status_code == 303
    answer = client.post("/p/pairs/label", data={"slot": "1"}, headers=JSON)
    assert answer.json()["error"]["code"] == "signed_out" and "is kept" in answer.json()["error"]["message"]


def test_ones_own_password_is_changed_by_whoever_knows_it(fresh: Site) -> None:
    client, elsewhere, other = fresh.client("ann"), fresh.client("ann"), fresh.client("bob")
    token = csrf_of(client, "/account")
    fields = {"csrf": token, "password": PASSWORD, "new": "quite another one", "again": "quite another one"}
    for wrong, status, words in (
        ({"password": "not it at all"}, 403, "not your current password"),
        ({"again": "quite another two"}, 422, "not the same both times"),
        ({"new": "short", "again": "short"}, 422, "at least 8 characters"),
    ):
        answer = post(client, "/account/password", fields | wrong)
        assert answer.status_code == status and words in answer.text
        assert elsewhere.get("/account").status_code == 200
    answer = post(client, "/account/password", fields)
    assert answer.headers["location"] == "/account?said=password"
    client = fresh.client()
    client.cookies.set("assent_session", answer.cookies["assent_session"])
    assert client.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 303 and other.get("/account").status_code == 200
    assert sign_in(fresh.client()).status_code == 401
    assert sign_in(fresh.client(), password="quite another one").status_code == 303
    fields["csrf"] = csrf_of(client, "/account")
    codes = [post(client, "/account/password", fields | {"password": f"guess {i}"}).status_code for i in range(12)]
    assert codes[0] == 403 and codes[-1] == 429


def test_sessions_elsewhere_end_and_this_one_stays(fresh: Site) -> None:
    client, elsewhere, other = fresh.client("ann"), fresh.client("ann"), fresh.client("bob")
    assert "1 other browser is signed in" in client.get("/account").text
    answer = post(client, "/account/sessions", {"csrf": csrf_of(client, "/account")})
    assert "signed in here alone" in client.get(answer.headers["location"]).text
    assert elsewhere.get("/account").status_code == 303 and other.get("/account").status_code == 200
    assert "nowhere else" in client.get("/account").text


def test_whoever_joins_while_signed_in_has_one_session_after_it(fresh: Site) -> None:
    with fresh.store.writing() as c:
        word = sessions.invite(c, fresh.project, "annotator", None, now=fresh.now)
    client = fresh.client("bob")
    before = client.cookies["assent_session"]
    fields = {"csrf": csrf_of(client, f"/join/{word}"), "user": "new", "password": PASSWORD}
    assert post(client, f"/join/{word}", fields).status_code == 303
    old = fresh.client()
    old.cookies.set("assent_session", before)
    assert old.get("/account").status_code == 303


def test_whoever_has_one_project_goes_straight_to_it(fresh: Site) -> None:
    assert sign_in(fresh.client()).headers["location"] == "/p/pairs"


@pytest.mark.parametrize("place", ["//evil.example", "/\\evil", "https://evil.example", "javascript:1", "/a\nb", ""])
def test_nobody_is_sent_to_another_site(place: str) -> None:
    assert inside(place) == "/"


def test_passwords_cannot_be_tried_for_ever(fresh: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "check_password", lambda c, name, password: None)
    client = fresh.client()
    codes = [sign_in(client, password=f"guess {i}").status_code for i in range(int(BY_NAME[1]) + 2)]
    assert codes == [401] * int(BY_NAME[1]) + [429] * 2
    refused = sign_in(client)
    assert "Too many tries" in refused.text and sign_in(client, user="ANN").status_code == 429
    assert sign_in(client, user="bob").status_code == 401
    codes = [sign_in(client, user=f"user {i}").status_code for i in range(int(BY_ADDRESS[1]))]
    assert codes[0] == 401 and codes[-1] == 429


def test_a_program_with_a_wrong_token_locks_nobody_out(fresh: Site) -> None:
    client = fresh.client()
    wrong = {"Authorization": "Bearer nonsense"}
    codes = [client.get("/api/p/pairs/next", headers=wrong).status_code for _ in range(int(BY_ADDRESS[1]) + 5)]
    assert codes[0] == 401 and codes[-1] == 429
    assert client.get("/api/p/pairs/progress", headers=fresh.api()).status_code == 200
    assert sign_in(client).status_code == 303


def test_an_address_that_is_made_up_wins_no_further_tries(fresh: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy of this machine, the address counts that it adds, which is the last."""
    monkeypatch.setattr(accounts, "check_password", lambda c, name, password: None)
    with Listening(fresh.app) as url, httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        fields = {"csrf": csrf_of(client), "password": "guess"}  # type: ignore[arg-type]
        codes = []
        for number in range(int(BY_ADDRESS[1]) + 5):
            made_up = {"X-Forwarded-For": f"10.0.0.{number}, 192.0.2.7", "X-Real-IP": f"10.0.1.{number}"}
            codes.append(client.post("/login", data=fields | {"user": f"u{number}"}, headers=made_up).status_code)
        assert codes[0] == 401 and codes[-1] == 429
        other = {"X-Forwarded-For": "192.0.2.8"}
        assert client.post("/login", data=fields | {"user": "u"}, headers=other).status_code == 401


def test_tries_come_back_with_time_and_what_was_right_does_not_count() -> None:
    now = [0.0]
    tries = Tries(lambda: now[0])
    for _ in range(200):
        tries.take("here", "ann")
        tries.fine("here", "ann")
    for _ in range(int(BY_NAME[1])):
        tries.take("here", "ann")
    with pytest.raises(Exception, match="Too many tries"):
        tries.take("here", "Ann")
    now[0] += 1.01 / BY_NAME[0]
    tries.take("here", "ann")
    with pytest.raises(Exception, match="The next one is free in"):
        tries.take("there", "ann")


def test_an_invitation_is_good_once(fresh: Site) -> None:
    with fresh.store.writing() as c:
        word = sessions.invite(c, fresh.project, "annotator", None, now=fresh.now)
        first = sessions.invite(c, None, "admin", None, now=fresh.now)
    client = fresh.client()
    assert "You are invited to label" in client.get(f"/join/{word}").text
    fields = {"csrf": csrf_of(client), "user": "new", "password": "short"}
    short = post(client, f"/join/{word}", fields)
    assert short.status_code == 422 and "at least 8" in short.text and 'value="new"' in short.text
    taken = post(client, f"/join/{word}", fields | {"user": "ann", "password": "not their password"})
    assert taken.status_code == 422 and "is taken" in taken.text
    answer = post(client, f"/join/{word}", fields | {"password": PASSWORD})
    assert answer.headers["location"] == "/p/pairs" and client.get("/p/pairs").status_code == 200
    again = fresh.client()
    assert again.get(f"/join/{word}").status_code == 403 and "used up" in again.get(f"/join/{word}").text
    lead = fresh.client()
    answer = post(lead, f"/join/{first}", {"csrf": csrf_of(lead), "user": "chief", "password": PASSWORD})
    assert answer.headers["location"] == "/"
    with fresh.store.reading() as c:
        assert accounts.user(c, "chief").role == "admin"


def test_no_secret_is_logged(fresh: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with fresh.store.writing() as c:
        word = sessions.invite(c, fresh.project, "annotator", None, now=fresh.now)
    client = fresh.client()
    post(client, f"/join/{word}", {"csrf": csrf_of(client), "user": "new", "password": PASSWORD})
    sign_in(fresh.client(), password="a wrong but secret one")
    client.get("/api/p/pairs/next", headers=fresh.api())
    text = "".join(record.getMessage() for record in caplog.records if record.name != "httpx2")  # the client's own
    for secret in (word, PASSWORD, "a wrong but secret one", client.cookies["assent_session"], fresh.tokens["bot"]):
        assert secret not in text
    with fresh.store.reading() as c:
        stored = "".join(str(row) for table in ("users", "sessions", "tokens", "invitations")
                         for row in c.exec_driver_sql(f"SELECT * FROM {table}"))  # fmt: skip
    for secret in (word, PASSWORD, client.cookies["assent_session"], fresh.tokens["bot"]):
        assert secret not in stored


def test_every_form_of_answers_names_its_draft() -> None:
    """Without it what somebody began at one item would come up at the next."""
    forms = [text for path in (HERE / "templates").glob("*.html") if 'id="work"' in (text := path.read_text("utf-8"))]
    assert len(forms) == 2 and all('data-draft="{{ sheet.draft }}"' in text for text in forms)


def test_a_form_shows_what_was_typed_without_running_it(fresh: Site) -> None:
    client = fresh.client()
    answer = sign_in(client, user='"><script>alert(1)</script>')
    assert answer.status_code == 401 and "<script>alert" not in answer.text and "&lt;script&gt;alert" in answer.text
    assert form(fresh.client("ann"))["slot"] == "1"
