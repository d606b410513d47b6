"""Row shapes: every public data set's rows become the one record, `assent.data.records.Example`.

`table` lists the shapes and what becomes of each column, `fates` of what all of them share; `detect` finds a file's
shape, `load` reads it; `conversations`, `pairs`, `judged` and `native` read one row each.
"""

from assent.data.formats.detect import detect
from assent.data.formats.load import Loaded, load_examples, merge
from assent.data.formats.native import message_row, to_row
from assent.data.formats.shape import Format
from assent.data.formats.table import FORMATS
from assent.data.records import Problem, RowError

__all__ = [
    "FORMATS",
    "Format",
    "Loaded",
    "Problem",
    "RowError",
    "detect",
    "load_examples",
    "merge",
    "message_row",
    "to_row",
]
