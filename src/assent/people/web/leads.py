"""Pages of those who lead a project: how it goes, and its annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from sqlalchemy import Connection, func, select
from starlette.responses import Response

from assent.people.store import accounts, listing, messages, review, standing
from assent.people.store import tables as t
from assent.people.store.board import View
from assent.people.store.oddities import Report
from assent.people.store.quality import Live
from assent.people.store.records import Member
from assent.people.web import leads_audit, leads_files, leads_items, leads_people, leads_review
from assent.people.web.leads_common import LEAD, board_of, label_rows, member_of, place
from assent.people.web.leads_words import (
    NOTHING,
    Cell,
    Question,
    chart_of,
    question_row,
    share_cell,
    taste_cell,
)
from assent.people.web.sessions import Visit
from assent.people.web.words import count

DAY = 86_400.0
LONGEST = 500
"""Characters of why somebody is locked out."""
LATEST = 30
"""Labels on the page of an annotator."""

router = APIRouter()
for _part in (leads_items, leads_review, leads_people, leads_files, leads_audit):
    router.routes.extend(_part.router.routes)


# ---- the overview


@dataclass(frozen=True)
class Progress:
    """Of the items of work: `labels` that stand of `wanted`, and `day` of them in the last 24 hours."""

    items: int
    done: int
    decided: int
    labels: int
    wanted: int
    day: int

    @property
    def left(self) -> str:
        """How long it takes at the pace of the last 24 hours."""
        rest = self.wanted - self.labels
        if rest <= 0 or not self.day:
            return ""
        days = rest / self.day
        return f"{days * 24:.0f} h" if days < 2 else f"{days:.0f} days"


@dataclass(frozen=True)
class Notice:
    """Something that wants attention, with where to see to it."""

    kind: str
    text: str
    link: str


@router.get("/p/{name}/lead")
def overview(visit: Visit = LEAD) -> Response:
    """How far the project is, how far annotators agree, and what wants attention."""
    view = board_of(visit).look()
    with visit.reading() as c:
        progress = _progress(c, visit)
        waiting = review.waiting(c, visit.place, view.disputes)
        members = accounts.members(c, visit.place)
    live = view.live
    questions = [question_row(one) for one in live.questions] if live else []
    return visit.page(
        "lead_overview.html",
        progress=progress,
        view=view,
        live=live,
        questions=questions,
        columns=list(dict.fromkeys(name for one in questions for name in one.cells)),
        chart=chart_of(live.timeline) if live else None,
        points=[(point, share_cell(point.agreement)) for point in live.timeline] if live else [],
        notices=_notices(visit, view, waiting, members, questions),
        waiting=len(waiting),
        people=sum(member.role != "lead" for member in members),
    )


def _progress(c: Connection, visit: Visit) -> Progress:
    counts = listing.counts(c, visit.place).get("work", {})
    mine = (t.items.c.project_id == visit.place.id) & (t.items.c.purpose == "work") & (t.items.c.state != "withdrawn")
    done, wanted = c.execute(select(func.sum(t.items.c.done), func.sum(t.items.c.wanted)).where(mine)).one()
    items = sum(counts.values()) - counts.get("withdrawn", 0)
    day = sum(number for number, _ in _lately(c, visit).values())
    finished = counts.get("done", 0) + counts.get("decided", 0)
    return Progress(items, finished, counts.get("decided", 0), done or 0, wanted or 0, day)


def _lately(c: Connection, visit: Visit) -> dict[int, tuple[int, float | None]]:
    """By user: answers of the last 24 hours, and when the last one was."""
    mine = (t.slots.c.user_id == t.memberships.c.user_id) & (t.slots.c.project_id == t.memberships.c.project_id)
    ended = mine & t.slots.c.state.in_(("done", "skipped"))
    since = ended & (t.slots.c.state == "done") & (t.slots.c.ended_at > visit.now - DAY)
    day = select(func.count()).select_from(t.slots).where(since).correlate(t.memberships).scalar_subquery()
    last = select(func.max(t.slots.c.ended_at)).where(ended).correlate(t.memberships).scalar_subquery()
    query = select(t.memberships.c.user_id, day, last).where(t.memberships.c.project_id == visit.place.id)
    return {user: (number, at) for user, number, at in c.execute(query)}


def _notices(
    visit: Visit,
    view: View,
    waiting: Sequence[review.Dispute],
    members: Sequence[Member],
    questions: Sequence[Question],
) -> list[Notice]:
    found = []
    for member in members:
        link = place(visit, f"/annotator/{member.user.id}")
        if member.locked is not None and not member.user.disabled:
            found.append(Notice("bad", f"{member.user.name} is locked out: {member.locked}", link))
        elif view.live is not None:
            report = view.live.annotators.get(member.user.name, Report())
            found += [Notice("warn", f"{member.user.name} {one.why}.", link) for one in report.odd]
    if waiting:
        words = f"{count(len(waiting), 'item')} to look at again: {_why(waiting)}."
        found.append(Notice("warn", words, place(visit, "/adjudicate")))
    found += [Notice("plain", f"{one.name}: {note}", "") for one in questions for note in one.notes]
    return found


def _why(waiting: Sequence[review.Dispute]) -> str:
    kinds = (
        ("marked", sum(one.mark is not None for one in waiting)),
        ("on which annotators differ", sum(one.differs > review.DIFFER for one in waiting)),
        ("both bad", sum(bool(one.both_bad) for one in waiting)),
        ("skipped", sum(bool(one.skips) for one in waiting)),
    )
    return ", ".join(f"{number:,} {words}" for words, number in kinds if number)


# ---- annotators


@dataclass(frozen=True)
class Row:
    """An annotator in the table."""

    member: Member
    skips: int
    day: int
    last: float | None
    report: Report
    cells: Mapping[str, Cell]


COLUMNS = {
    "agreement": ("Agrees with others", "how often others gave the same answer to the same item"),
    "gold": ("Known answers", "right answers to gold items"),
    "again": ("Same again", "the same answer at a second, blind look"),
    "side": ("Side", "how often the answer on this side is taken where the others' votes are even"),
    "length": ("Length", "the same of the longer or the shorter answer, a standard deviation apart"),
    "late": ("Lately", "agreement, or known answers right, of the last labels; the first half in small"),
    "hurried": ("Too fast", "labels given faster than anybody reads"),
}


def _cells(report: Report) -> dict[str, Cell]:
    drift = report.drift
    late = NOTHING
    if drift is not None:
        before = share_cell(drift.early)
        late = Cell(share_cell(drift.late).text, f"before {before.text}", drift.late.n)
    return {
        "agreement": share_cell(report.agreement),
        "gold": share_cell(report.gold),
        "again": share_cell(report.again),
        "side": taste_cell(report.side, ("left", "right")),
        "length": taste_cell(report.length, ("longer", "shorter")),
        "late": late,
        "hurried": share_cell(report.hurried),
    }


def _rows(visit: Visit, live: Live | None, view: View) -> list[Row]:
    with visit.reading() as c:
        members, lately = accounts.members(c, visit.place), _lately(c, visit)
    rows = []
    for member in members:
        name = member.user.name
        report = live.annotators.get(name, Report()) if live else Report()
        day, last = lately.get(member.user.id, (0, None))
        if member.role != "lead" or member.done:
            rows.append(Row(member, view.skips.get(name, 0), day, last, report, _cells(report)))
    return sorted(rows, key=lambda row: (not row.report.odd, row.member.locked is None, row.member.user.name))


@router.get("/p/{name}/lead/annotators")
def annotators(visit: Visit = LEAD) -> Response:
    """Everybody who labels, those first of whom something is odd."""
    view = board_of(visit).look()
    rows = _rows(visit, view.live, view)
    used = {name: words for name, words in COLUMNS.items() if any(row.cells[name].text for row in rows)}
    if all(row.report.hurried.mean == 0 for row in rows if row.report.hurried.n):
        used.pop("hurried", None)
    return visit.page("lead_annotators.html", rows=rows, columns=used, view=view)


@router.get("/p/{name}/lead/annotator/{user}")
def annotator(user: int, visit: Visit = LEAD) -> Response:
    """One annotator, with their latest labels."""
    return annotator_page(visit, user)


def annotator_page(visit: Visit, user: int, problem: str = "", status: int = 200) -> Response:
    """The page, with what was wrong."""
    view = board_of(visit).look()
    member = member_of(visit, user)
    row = next((row for row in _rows(visit, view.live, view) if row.member.user.id == user), None)
    if row is None:
        row = Row(member, 0, 0, None, Report(), _cells(Report()))
    with visit.reading() as c:
        latest = label_rows(c, visit.place, member.user, LATEST)
        written = messages.messages(c, visit.place, member.user)
    return visit.page(
        "lead_annotator.html",
        status,
        row=row,
        columns=COLUMNS,
        latest=latest,
        written=written,
        problem=problem,
        view=view,
    )


@router.post("/p/{name}/lead/annotator/{user}/message")
def message(user: int, visit: Visit = LEAD) -> Response:
    """Writes to somebody, who reads it above their next item."""
    member = member_of(visit, user)
    text = visit.field("text", messages.LONGEST).replace("\r\n", "\n")
    if not text:
        return annotator_page(visit, user, "Write something first.", 422)
    with visit.writing() as c:
        messages.send(c, visit.place, member.user, text, visit.known, visit.now)
    return visit.go(place(visit, f"/annotator/{user}"))


@router.post("/p/{name}/lead/annotator/{user}/lock")
def lock(user: int, visit: Visit = LEAD) -> Response:
    """Locks somebody out, with a reason that they are told."""
    why = visit.field("why", LONGEST)
    if not why:
        return annotator_page(visit, user, "Say why: it is what they read in place of the next item.", 422)
    member = member_of(visit, user)
    with visit.writing() as c:
        standing.lock(c, visit.place, member.user, visit.known, why, visit.now)
    return visit.go(place(visit, f"/annotator/{user}"))


@router.post("/p/{name}/lead/annotator/{user}/unlock")
def unlock(user: int, visit: Visit = LEAD) -> Response:
    """Lets somebody in again."""
    member = member_of(visit, user)
    with visit.writing() as c:
        standing.unlock(c, visit.place, member.user, visit.known, visit.now)
    return visit.go(place(visit, f"/annotator/{user}"))
