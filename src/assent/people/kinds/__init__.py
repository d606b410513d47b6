"""The kinds of tasks: for each, which answers it allows and what trainers read of them.

    pair        {"verdict": "better", "better": 0 or 1, "strength": 1 to 3 or null}, or tie, both_bad, cannot_judge
    ranking     {"levels": [[2], [0, 1], [3]]}, best first
    best        {"best": 2}, or null: none is good
    attributes  {"scores": [{"helpfulness": 4, ...}, ...]}, one for each answer
    yesno       {"labels": [true, false, null]}, one for each answer; null: cannot be judged
    edit        {"text": "...", "from": index or null}
    spans       {"spans": [{"answer": 0, "start": 3, "end": 9, "label": "wrong", "comment": "..."}]}, in code points

All name answers by their index in the item, never by where they stood on the page, and may have a "comment"."""

from assent.people.kinds.base import COMMENT, TEXT, Kind, LabelError, Shown, Value
from assent.people.kinds.compare import BEST, PAIR, RANKING
from assent.people.kinds.rate import ATTRIBUTES, YESNO
from assent.people.kinds.write import EDIT, SPANS, changed

KINDS: dict[str, Kind] = {kind.name: kind for kind in (PAIR, RANKING, BEST, ATTRIBUTES, YESNO, EDIT, SPANS)}

__all__ = ["COMMENT", "KINDS", "TEXT", "Kind", "LabelError", "Shown", "Value", "changed"]
