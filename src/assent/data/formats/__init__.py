"""Row shapes: every public data set's rows become the one record, `assent.data.records.Example`.

`table` lists the shapes, `load` reads files of them; `conversations`, `pairs`, `judged` and `native` parse one row
each.
"""

from assent.data.formats.load import Loaded, load_examples, merge
from assent.data.formats.native import to_row
from assent.data.formats.table import FORMATS, Format, detect
from assent.data.records import Problem, RowError

__all__ = ["FORMATS", "Format", "Loaded", "Problem", "RowError", "detect", "load_examples", "merge", "to_row"]
