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

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
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
from assent.people.web import formulas

LONGEST = 50_000
"""Characters of a text that is read as Markdown; a longer one is shown as it is."""
LONGEST_CODE = 30_000
"""Characters of a block of code that gets colours."""
FORMULAS = 300
"""Formulas of one text that are set."""
KEPT = 512
"""Texts whose HTML is kept."""

_MATH = (
    "math maction menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow "
    "ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none semantics"
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
    "*": {"dir"},
    "a": {"href"},
    "code": {"class"},
    "div": {"class"},
    "ol": {"start"},
    "pre": {"class"},
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
    made.inline.ruler.before("math_inline", "dollar", _dollar)
    made.core.ruler.push("directions", _directions)
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
    rules["table_open"] = lambda *_: '<div class="wide"><table dir="auto">'
    rules["table_close"] = lambda *_: "</table></div>"
    return made


def _directions(state: StateCore) -> None:
    """A paragraph, list or table goes the way that its first letter goes: Arabic and Hebrew from the right."""
    for token in state.tokens:
        if token.level == 0 and token.nesting == 1:
            token.attrSet("dir", "auto")


# ---- \( \) and \[ \], as language models write formulas


def _dollar(state: StateInline, silent: bool) -> bool:
    """$x$, and a dollar that is one: a sign of money or of a shell stands at a letter or digit (US$5, $5-$10, 5$,
    $HOME/$USER), before a blank, or before code that begins inside."""
    if state.src[state.pos] != "$" or state.src.startswith("$$", state.pos):
        return False
    end = _closing(state.src, state.pos + 1, state.posMax)
    content = state.src[state.pos + 1 : end]
    before, after = state.src[: state.pos][-1:], state.src[end + 1 : state.posMax][:1]
    maths = end > 0 and content.strip() == content != "" and "`" not in content
    if not maths or before.isalnum() or after.isdigit() or after.isupper():
        if not silent:
            state.pending += "$"
        state.pos += 1
        return True
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content, token.markup = content, "$"
    state.pos = end + 1
    return True


def _closing(text: str, start: int, most: int) -> int:
    """Where the next dollar is that no backslash stands before; -1: nowhere."""
    end = text.find("$", start, most)
    while end > 0 and text[end - 1] == "\\":
        end = text.find("$", end + 1, most)
    return end


def _inline_brackets(state: StateInline, silent: bool) -> bool:
    start = state.src[state.pos : state.pos + 2]
    if start not in (r"\(", r"\["):
        return False
    end = state.src.find(r"\)" if start == r"\(" else r"\]", state.pos + 2, state.pos + 2 + formulas.LONGEST)
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
    end = state.src.find(r"\]", begin + 2, begin + 2 + formulas.LONGEST)
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
    made = formulas.mathml(token.content, display) if env["formulas"] <= FORMULAS else ""
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
    return f'<pre class="code"><code>{inner}</code></pre>\n'


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
    calls = (f"**Calls** {_code_span(call.name)}\n\n{_fenced(call.arguments)}" for call in message.tool_calls)
    return "\n\n".join([*([message.content] if message.content else []), *calls])


def _code_span(text: str) -> str:
    fence = _longer(text, 1)
    return f"{fence} {text} {fence}"


def _fenced(text: str) -> str:
    fence = _longer(text, 3)
    return f"{fence}json\n{text}\n{fence}"


def _longer(text: str, least: int) -> str:
    """More backticks than stand together in a text."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
