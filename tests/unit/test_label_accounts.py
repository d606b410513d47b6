"""Accounts, passwords, sessions, tokens and invitations: who comes in, and what is kept of it."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from assent.people.store import accounts, audit, projects, queue, sessions
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, AccountError, MissingError
from tests.labelling import START, made, opened, take, task

WORD = "correct horse battery"
DAY = 86_400.0


@pytest.fixture
def store(tmp_path):
    with opened(tmp_path / "labels.db") as store:
        yield store


def test_a_password_lets_in_whoever_has_it(store):
    with store.writing() as c:
        assert not accounts.any_user(c)
        user = accounts.add_user(c, "  Ada   Lovelace ", WORD, "annotator", None, START)
        assert accounts.any_user(c) and user.name == "Ada Lovelace"
        assert accounts.check_password(c, "ada lovelace", WORD) == user
        for name, word in (("ada lovelace", WORD + "!"), ("ada", WORD), ("ada lovelace", ""), ("", "")):
            assert accounts.check_password(c, name, word) is None
        stored = c.execute(select(t.users.c.password)).scalar_one()
        assert stored.startswith("$argon2id$v=19$m=8,t=1,") and WORD not in stored, "quickly, in tests"
        accounts.set_password(c, user, WORD + " 2", None, START)
        assert accounts.check_password(c, "Ada Lovelace", WORD) is None
        assert accounts.check_password(c, "Ada Lovelace", WORD + " 2") == user


def test_a_hash_takes_its_time(store, monkeypatch, quick_passwords):
    """The work that RFC 9106 asks for where memory is short: 64 MiB, three passes."""
    monkeypatch.setattr("argon2.PasswordHasher", quick_passwords)
    accounts._hasher.cache_clear()
    try:
        with store.writing() as c:
            user = accounts.add_user(c, "ada", WORD, "annotator", None, START)
            assert c.execute(select(t.users.c.password)).scalar_one().startswith("$argon2id$v=19$m=65536,t=3,p=4$")
            assert accounts.check_password(c, "ada", WORD) == user
    finally:
        accounts._hasher.cache_clear()


@pytest.mark.parametrize(
    ("name", "password", "role", "message"),
    [
        ("ada", WORD, "annotator", "'ada' is taken"),
        ("ADA", WORD, "annotator", "'ADA' is taken"),
        ("", WORD, "annotator", "A name has up to 64"),
        ("a\x00b", WORD, "annotator", "A name has up to 64"),
        ("<b>", WORD, "annotator", "A name has up to 64"),
        ("a\u202eb", WORD, "annotator", "A name has up to 64"),
        ("x" * 65, WORD, "annotator", "A name has up to 64"),
        ("bob", "short", "annotator", "at least 8 characters"),
        ("bob", "x" * 1001, "annotator", "at most 1,000"),
        ("bob", WORD, "king", "No role 'king'"),
        ("bob", WORD, "judge", "signs in by a token"),
    ],
)
def test_what_cannot_be_an_account(store, name, password, role, message):
    with store.writing() as c:
        accounts.add_user(c, "Ada", WORD, "annotator", None, START)
        with pytest.raises(AccountError, match=message):
            accounts.add_user(c, name, password, role, None, START)


def test_names_in_any_script_and_strange_passwords(store):
    with store.writing() as c:
        for name, word in (
            ("José Ñandú", "пароль пароль"),
            ("李雷", "\ud800 half a letter"),
            ("o'neil@x", " " * 8),
        ):
            user = accounts.add_user(c, name, word, "annotator", None, START)
            assert accounts.check_password(c, name, word) == user


def test_a_session_lasts_until_it_ends(store):
    with store.writing() as c:
        user = accounts.add_user(c, "ada", WORD, "annotator", None, START)
        token = sessions.start_session(c, user, START)
        assert sessions.user_of(c, token, START + 1) == user
        assert sessions.user_of(c, token + "x", START + 1) is None
        assert sessions.user_of(c, token, START + sessions.SESSION) is None
        other = sessions.start_session(c, user, START + 1)
        sessions.end_session(c, other)
        assert sessions.user_of(c, other, START + 2) is None and sessions.user_of(c, token, START + 2) == user
        assert token not in str(c.execute(select(t.sessions)).all())
        accounts.set_password(c, user, WORD + "!", None)
        assert sessions.user_of(c, token, START + 2) is None
        sessions.start_session(c, user, START + 3 * sessions.SESSION)
        assert len(c.execute(select(t.sessions)).all()) == 1  # those that ended are gone


def test_a_token_of_a_program_until_it_is_revoked(store):
    with store.writing() as c:
        judge = accounts.add_user(c, "judge", None, "judge", None, START)
        assert accounts.check_password(c, "judge", "") is None
        token = sessions.api_token(c, judge, None, START)
        assert sessions.user_of_api(c, token) == judge and sessions.user_of_api(c, "x") is None
        assert sessions.user_of(c, token, START) is None
        assert token not in str(c.execute(select(t.tokens)).all())
        assert sessions.revoke_tokens(c, judge, None, START) == 1
        assert sessions.user_of_api(c, token) is None


def test_an_invitation_makes_a_member_as_often_as_it_says(store):
    with store.writing() as c:
        project = projects.put_project(c, task(), now=START)
        word = sessions.invite(c, project, "annotator", None, uses=2, days=3, now=START)
        assert sessions.invited(c, word, START) == (project, "annotator")
        ada = sessions.join(c, word, "ada", WORD, START)
        assert accounts.membership(c, project, ada) == "annotator"
        with pytest.raises(AccessError, match="The name is taken"):
            sessions.join(c, word, "Ada", "another word", START)
        with pytest.raises(AccountError, match="at least 8"):
            sessions.join(c, word, "bob", "x", START)
        bob = sessions.join(c, word, "bob", WORD, START)
        for late in (START, START + 4 * DAY):
            with pytest.raises(AccessError, match="used up, has ended, or never was"):
                sessions.join(c, word, "eve", WORD, late)
        assert {user.name for user in accounts.users(c, project)} == {"ada", "bob"}
        assert sessions.join(c, sessions.invite(c, project, "lead", bob, now=START), "ada", WORD, START) == ada
        assert accounts.membership(c, project, ada) == "lead"
        again = sessions.invite(c, project, "annotator", ada, now=START)
        sessions.join(c, again, "ada", WORD, START)
        assert accounts.membership(c, project, ada) == "lead"  # not less than before
        assert word not in str(c.execute(select(t.invitations)).all())


def test_an_invitation_ends_by_time_or_by_hand(store):
    with store.writing() as c:
        project = projects.put_project(c, task(), now=START)
        word = sessions.invite(c, project, "annotator", None, uses=9, days=3, now=START)
        other = sessions.invite(c, project, "annotator", None, uses=9, days=3, now=START)
        sessions.revoke_invitation(c, 2, None, START)
        for used, late in ((word, START + 3 * DAY), (other, START), ("", START), ("\ud800", START)):
            with pytest.raises(AccessError):
                sessions.join(c, used, "ada", WORD, late)
        with pytest.raises(AccountError):
            sessions.invite(c, project, "admin", None)
        with pytest.raises(AccountError):
            sessions.invite(c, None, "lead", None)


def test_the_first_admin_and_what_admins_may(store):
    with store.writing() as c:
        project = projects.put_project(c, task(), now=START)
        admin = sessions.join(c, sessions.invite(c, None, "admin", None, now=START), "root", WORD, START)
        assert admin.role == "admin" and accounts.membership(c, project, admin) == "admin"
        assert [p.name for p in projects.projects(c, admin)] == ["pairs"]
        ada = accounts.add_user(c, "ada", WORD, "annotator", admin, START)
        assert accounts.membership(c, project, ada) is None and projects.projects(c, ada) == []
        assert queue.next_slot(c, project, admin, START).reason == "done"  # there are no items
        assert accounts.member(c, project, admin).role == "lead"
        raised = sessions.join(c, sessions.invite(c, None, "admin", admin, now=START), "ada", WORD, START)
        assert raised.role == "admin" and raised.id == ada.id
        for name in ("eve", "\ud800", "\x00"):
            assert accounts.check_password(c, name, WORD) is None
            with pytest.raises(MissingError, match="There is no user"):
                accounts.user(c, name)


def test_roles_that_do_not_fit(store):
    with store.writing() as c:
        project = projects.put_project(c, task(), now=START)
        ada = accounts.add_user(c, "ada", WORD, "annotator", None)
        judge = accounts.add_user(c, "judge", None, "judge", None)
        for user, role in ((ada, "admin"), (ada, "judge"), (judge, "annotator"), (judge, "lead")):
            with pytest.raises(AccountError, match="cannot be a"):
                accounts.add_member(c, project, user, role, None)
        accounts.add_member(c, project, judge, "judge", None)
        assert [(m.user.name, m.role) for m in accounts.members(c, project)] == [("judge", "judge")]


def test_a_disabled_account_is_out_at_once_and_its_items_come_back(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=1)
    slot = take(store, project, one)
    with store.writing() as c:
        accounts.set_password(c, one, WORD, None)
        session, token = sessions.start_session(c, one, START), sessions.api_token(c, one, None)
        accounts.disable(c, one, None, START)
        assert sessions.user_of(c, session, START) is None and sessions.user_of_api(c, token) is None
        assert accounts.check_password(c, one.name, WORD) is None
        gone = accounts.user(c, one.id)
        assert gone.disabled and accounts.membership(c, project, gone) is None
        with pytest.raises(AccessError, match="no member"):
            queue.next_slot(c, project, gone, START)
    assert take(store, project, two).item.id == slot.item.id
    with store.writing() as c:
        accounts.enable(c, gone, None, START)
        assert accounts.check_password(c, one.name, WORD) == one


def test_the_audit_log_says_who_did_what(store):
    with store.writing() as c:
        project = projects.put_project(c, task(), now=START)
        admin = accounts.add_user(c, "root", WORD, "admin", None, START)
        accounts.add_user(c, "ada", WORD, "annotator", admin, START + 1)
        for number in range(5):
            audit.record(c, admin, "note", f"{number}" * 300, {"n": number}, START + 2, project)
        everything = audit.entries(c, None)
        assert [entry.what for entry in everything] == ["note"] * 5 + ["account made"] * 2 + ["project made"]
        assert everything[5].by == "root" and everything[6].by is None and everything[7].target == "pairs"
        mine = audit.entries(c, project, limit=2)
        assert [entry.detail["n"] for entry in mine] == [4, 3] and len(mine[0].target) == 200
        assert [entry.detail.get("n") for entry in audit.entries(c, project, after=mine[-1].id)] == [2, 1, 0, None]
        assert WORD not in str(everything)
