"""Writing JSON lines that every reader cuts in the same places."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# Line ends to some readers though not to JSON; and halves of surrogate pairs, which UTF-8 cannot write.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def json_line(row: Mapping[str, Any]) -> str:
    """One object as a line of JSON with its line end. ValueError for NaN and infinities."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"
