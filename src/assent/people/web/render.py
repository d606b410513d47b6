"""Prompts and answers as safe HTML: Markdown, code in colours, and maths as MathML, of texts that nobody vouches for.

HTML in a text stays text, images become links, and whatever comes out passes a list of allowed elements. Nothing that a
text says can raise, or take long: what is too large or too strange is shown as it is written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, cast
from xml.etree import ElementTree

import nh3
from latex2mathml import converter
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from assent.data.records import Message

LONGEST = 50_000
"""Characters of a text that is read as Markdown; a longer one is shown as it is."""
LONGEST_CODE = 30_000
"""Characters of a block of code that gets colours."""
LONGEST_FORMULA, FORMULAS = 2_000, 300
"""Characters of a formula that is set, and formulas of one text."""
KEPT = 512
"""Texts whose HTML is kept."""

_MATH = (
    "math maction menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow "
    "ms mspace msqrt msub msubsup msup mtable mtd mtext mtr munder munderover none semantics"
).split()
_MATH_ATTRIBUTES = {
    "accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence",
    "form", "height", "largeop", "linethickness", "lspace", "mathsize", "mathvariant", "maxsize", "minsize",
    "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy",
    "symmetric", "voffset", "width",
}  # fmt: skip
_TAGS = {
    *"a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong".split(),
    *"table tbody td th thead tr ul".split(),
    *_MATH,
}
_ATTRIBUTES: dict[str, set[str]] = {
    "*": set(),
    "a": {"href"},
    "code": {"class"},
    "div": {"class"},
    "ol": {"start"},
    "pre": {"class", "tabindex"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
    **dict.fromkeys(_MATH, _MATH_ATTRIBUTES),
}
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def shown(text: str) -> str:
    """The text with every character that a page cannot carry, or that would reorder it, as "\N{REPLACEMENT CHARACTER}":
    one for one, so that places in it stay what they are."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def plain(text: str) -> Markup:
    """The text itself, for an element with `white-space: pre-wrap`; its places are those of the text."""
    return Markup(html.escape(shown(text)).replace("\r", "&#13;"))  # a parser would make one line end of \r\n


@lru_cache(maxsize=KEPT)
def markdown(text: str) -> Markup:
    """The text as Markdown."""
    if len(text) > LONGEST:
        return Markup('<div class="as-written">{}</div>').format(plain(text))
    try:
        made = _parser().render(shown(text), {"formulas": 0})
    except (RecursionError, IndexError, ValueError, KeyError):
        return Markup('<div class="as-written">{}</div>').format(plain(text))
    return Markup(
        nh3.clean(
            made,
            tags=_TAGS,
            attributes=_ATTRIBUTES,
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )
    )


@cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    made.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    made.use(amsmath_plugin)
    made.inline.ruler.before("escape", "bracket_math", _inline_brackets)
    made.block.ruler.before(
        "paragraph", "bracket_math", _block_brackets, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    assert isinstance(made.renderer, RendererHTML)
    rules = cast(dict[str, Any], made.renderer.rules)
    rules["math_inline"] = lambda tokens, place, options, env: _formula(tokens[place], env, "inline")
    for name in ("math_inline_double", "math_block", "amsmath"):
        rules[name] = lambda tokens, place, options, env: _formula(tokens[place], env, "block")
    rules["fence"] = lambda tokens, place, options, env: _code(tokens[place].content, tokens[place].info)
    rules["code_block"] = lambda tokens, place, options, env: _code(tokens[place].content, "")
    rules["image"] = _image
    for name in ("th_open", "td_open"):
        rules[name] = _cell
    rules["table_open"] = lambda *_: '<div class="wide"><table>'
    rules["table_close"] = lambda *_: "</table></div>"
    return made


# ---- \( \) and \[ \], as language models write formulas


def _inline_brackets(state: StateInline, silent: bool) -> bool:
    start = state.src[state.pos : state.pos + 2]
    if start not in (r"\(", r"\["):
        return False
    end = state.src.find(r"\)" if start == r"\(" else r"\]", state.pos + 2, state.pos + 2 + LONGEST_FORMULA)
    if end < 0:
        return False
    if not silent:
        token = state.push("math_inline" if start == r"\(" else "math_inline_double", "math", 0)
        token.content, token.markup = state.src[state.pos + 2 : end], start
    state.pos = end + 2
    return True


def _block_brackets(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    begin = state.bMarks[first] + state.tShift[first]
    if not state.src.startswith(r"\[", begin) or state.is_code_block(first):
        return False
    end = state.src.find(r"\]", begin + 2, begin + 2 + LONGEST_FORMULA)
    if end < 0:
        return False
    line = first
    while line < last and end >= state.eMarks[line]:
        line += 1
    if line == last or state.src[end + 2 : state.eMarks[line]].strip(" \t"):
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.content, token.markup, token.block = state.src[begin + 2 : end], r"\[", True
        token.map = [first, line + 1]
        state.line = line + 1
    return True


def _formula(token: Token, env: dict[str, Any], display: str) -> str:
    env["formulas"] = env.get("formulas", 0) + 1
    source = token.content.strip()
    if source and len(source) <= LONGEST_FORMULA and env["formulas"] <= FORMULAS:
        try:
            made = converter.convert(source, display=display)
            ElementTree.fromstring(made)  # what stands in \text{} goes into it as it is
        except Exception:  # not all that people write is a formula, and the converter's errors are of many kinds
            made = ""
        if made:
            return f'<div class="formula">{made}</div>' if token.block else made
    ends = {r"\(": r"\)", r"\[": r"\]"}
    before = token.markup if token.type != "amsmath" else ""
    written = html.escape(f"{before}{token.content}{ends.get(before, before)}")
    return f'<pre class="code">{written}</pre>' if token.block else f"<code>{written}</code>"


# ---- code, tables, images


def _code(text: str, info: str) -> str:
    words = info.split()
    name = words[0].lower() if words else ""
    inner = html.escape(text)
    if name and len(text) <= LONGEST_CODE:
        try:
            inner = highlight(text, get_lexer_by_name(name, stripnl=False, ensurenl=False), _formatter())
        except ClassNotFound:
            pass
    return f'<pre class="code" tabindex="0"><code>{inner}</code></pre>\n'


@cache
def _formatter() -> HtmlFormatter[str]:
    return HtmlFormatter(nowrap=True, classprefix="c-")


def _image(tokens: Sequence[Token], place: int, options: object, env: object) -> str:
    """A link: a picture from elsewhere would tell its server who labels what, and when."""
    token = tokens[place]
    address = html.escape(str(token.attrs.get("src", "")))
    return f'<a href="{address}">[image: {html.escape(token.content or str(token.attrs.get("src", "")))}]</a>'


def _cell(tokens: Sequence[Token], place: int, options: object, env: object) -> str:
    style = str(tokens[place].attrs.get("style", ""))
    side = style.removeprefix("text-align:")
    return f'<{tokens[place].tag} class="{side}">' if side in ("right", "center") else f"<{tokens[place].tag}>"


# ---- conversations


def text_of(message: Message) -> str:
    """What a turn says, with the tools that it calls."""
    calls = (f"```json\n{call.name} {call.arguments}\n```" for call in message.tool_calls)
    return "\n\n".join([*([message.content] if message.content else []), *calls])
