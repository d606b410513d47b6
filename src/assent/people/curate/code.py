"""Whether a prompt holds code, or is about programming: by lines that look like code, and by words."""

from __future__ import annotations

import re

HOLDS, ABOUT = "holds code", "about programming"
LOOKED_AT, LINE = 20_000, 400
"""Characters of a text, and of each line, in which code is looked for."""

_FENCE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_LINE = re.compile(
    r"""^\s*(?:
      (?:async\s+)?def\s+\w+\s*\( | class\s+\w+\s*[:({] | (?:from\s+[\w.]+\s+)?import\s+[\w.{*]+\s*(?:$|;|,|as\s|from\s)
    | \#\s*include\s*[<"] | using\s+namespace\s | package\s+[\w.]+; | (?:export\s+)?(?:const|let|var)\s+\w+\s*=
    | (?:public|private|protected|static)\s+[\w<>\[\]]+\s+\w+ | (?:async\s+)?function\s*\w*\s*\(
    | \}?\s*else\s*(?:\{|:\s*$) | (?:if|for|while|switch|catch)\s*\(.*\)\s*\{?\s*$
    | (?:if|for|while|elif|with|try)\b[^.?!]*:\s*$
    | SELECT\s.+\sFROM\s | INSERT\s+INTO\s | UPDATE\s+\w+\s+SET\s | CREATE\s+TABLE\s
    | </?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>(?:.*>)?\s*$
    | (?:print|printf|console\.log|System\.out\.print\w*|std::cout)\s*[(<]
    | return\s+[\w.()\[\]]+(?:\s*[-+*/%<>=,]+\s*[\w.()\[\]]+)*\s*;?\s*$
    | [\w.\[\]]+\s*(?:[+*/-]?=)\s*(?:new\s+)?[\w.]+\(.*\)\s*;?\s*$ | [\w.]+\([^)]*\)\s*[;{]\s*$ | [{}]\s*;?\s*$
    | (?!.*\b[A-Za-z]+\s+[a-z]+\s+[a-z]+\b)[^.!?]*[=(){}\[\]][^.!?]*;\s*$
    | \$\s*(?:sudo|pip|git|cd|ls|npm|docker)\s | @\w+\s*$ | Traceback\ \(most\ recent | File\ ".*",\ line\ \d
    | [a-z]\w*\s*=\s*[\[{]\s*["'].*[\]}]\s*;?\s*$
    )""",
    re.VERBOSE,
)
_INLINE = re.compile(r"\w+\([^()]*\)\s*[;{]|=>|\bdef \w+\(|[!=]==?\s*\w+\s*[&|)]|::\w+|\b\w+\[\w+\]\s*=|<\w+>.*</\w+>")

_NAMES = (  # of languages and tools, which mean little else
    r"python3?|java(?!\ (?:coffee|island|sea|beans?)\b)|javascript|typescript|c\+\+|c\#|objective-c|golang|php|perl"
    r"|kotlin|scala|lua|matlab|haskell|powershell|bash|vba|cuda|opencl|verilog|vhdl|fortran|cobol|webassembly|llvm"
    r"|(?:my|postgre|no)?sql|postgres|sqlite|mongodb|graphql|redis|html5?|css3?|scss|jquery|react(?:js|\.js|\ hooks?)"
    r"|react\ (?:apps?|components?)|vue(?:js|\.js|\ \d)|angular(?:js|\ \d+)|svelte|next\.?js|node\.?js|express\.js|json"
    r"|tailwind(?:\ ?css)?|bootstrap\ css|django|flask\ (?:app|api|server)s?|fastapi|spring\ boot|ruby\ on\ rails"
    r"|rails\ apps?|\.net|numpy|scipy|(?:with|using|in|a)\ pandas|pandas\ (?:data)?frames?|pytorch|tensorflow|opencv"
    r"|docker(?:file|\ compose|\ containers?|\ images?)?|kubernetes|kubectl|terraform|ansible|makefiles?|cmake|npm|npx"
    r"|pip\ install|github|gitlab|git\ (?:rebase|merge|commit|branch|push|pull|stash|checkout|repositor(?:y|ies))"
    r"|(?:in|using|with)\ git|regex(?:es|ps?)?|leetcode|arduino|unreal\ engine|useeffect|usestate|rest\ apis?"
    r"|restful|api\ endpoints?|stack\ ?overflow|selenium|jupyter"
)
_TERMS = (  # of programming
    r"source\ code|pseudo-?code|(?:lines?|pieces?|snippets?|blocks?)\ of\ code|code\ (?:snippets?|segments?|reviews?)"
    r"|regular\ expressions?|unit\ tests?|(?:linked|adjacency)[- ]lists?|binary\ (?:search\ )?trees?|binary\ search"
    r"|hash\ ?(?:maps?|tables?)|(?:quick|merge|bubble|insertion|heap|selection|radix)[- ]?sort"
    r"|(?:time|space)\ complexity\ of|big[- ]o\ notation|dynamic\ programming|programming\ languages?|in\ programming"
    r"|(?:object[- ]oriented|functional|computer)\ programming|compil(?:er|ation)\ errors?|stack\ traces?"
    r"|segmentation\ faults?|segfaults?|null\ ?pointers?|(?:for|while|for-?each)\ loops?|infinite\ loops?"
    r"|abstract\ class(?:es)?|(?:sql|database|select)\ (?:quer(?:y|ies)|statements?|schemas?)|stored\ procedures?"
    r"|query\ to\ (?:retrieve|select|get|find|fetch|insert|update|delete)"
    r"|(?:excel|spreadsheet|sheets)\ (?:formulas?|macros?)"
    r"|(?:shell|batch)\ scripts?|one-liner\ that|command[- ]line\ (?:tool|program|app|interface)s?|async/await"
    r"|c\ programs?|(?:center|centre)\ a\ div|web\ scrap(?:er|ing)|merge\ conflicts?|pull\ requests?"
    r"|ci(?:/cd)?\ pipelines?|http\ requests?|environment\ variables?|(?:static|private|public|virtual)\ methods?"
    r"|refactor|debug|recursive\ function|callback\ functions?|software\ bugs?|(?:sorted|given|two|an)\ arrays?"
)
_THINGS = (
    r"(?:arrays?|lists?|strings?|integers?|numbers?|inputs?|outputs?|sort(?:s|ed|ing)?|dates?|files?|fahrenheit|leap)"
)
_MAKE = r"(?:write|create|design|build|make|develop|implement|generate|construct|give|show|code)"
_KIND = r"(?:simple|small|short|computer|recursive|efficient|basic|new|working|complete|python)"
_ABOUT = re.compile(
    rf"(?<![a-z0-9_.])(?:{_NAMES})(?![a-z0-9_])|\b(?:{_TERMS})\b"
    rf"|\b{_MAKE}\ (?:me\ )?(?:an?\ |the\ |some\ |this\ )?(?:{_KIND}\ )*(?:code|function|algorithm|program|method)"
    rf"\ (?:to|that|which|for|in)\b(?=.{{0,80}}\b(?:{_THINGS}|pairs?|text|problem)\b)"
    rf"|\bfunction\ (?:to|that|which)\b(?=.{{0,40}}\b{_THINGS}\b)"
    r"|\b(?:write|implement|debug|fix|edit|check|explain|run|refactor|compile|code)\ (?:me\ )?"
    r"(?:some\ |this\ |the\ |my\ |an?\ |any\ )?(?:following\ |sorting\ |short\ )?(?:code|algorithms?)\b"
    r"|\b(?:this|following)\ code\b|\bdata\ structures?\b"
)
"""Of text in lower case, which is looked through faster."""
_CASED = re.compile(  # where capitals tell it from a word
    r"\bin (?:C|R|Rust|Swift|Go|Ruby|Dart|Julia|Node)\b(?! (?:major|minor|sharp|flat))"
    r"|\b(?:Rust|Swift|Ruby|Go|R) (?:code|functions?|programs?|scripts?|crates?|structs?)\b"
    r"|\b[A-Z][a-z]+(?:[A-Z][a-z]+)*(?:Error|Exception)\b"
)


def code_in(text: str) -> str:
    """Whether a prompt holds code (a fence, two lines that look like it, or one that is half of the text), is about
    programming by its words, or neither: a rule of thumb, for English and the usual programming languages."""
    text = text[:LOOKED_AT]
    if _FENCE.search(text):
        return HOLDS
    lines = [line[:LINE] for line in text.splitlines() if line.strip()]
    looks = sum(_LINE.match(line) is not None for line in lines)
    if looks >= 2 or (looks and 2 * looks >= len(lines)) or sum(len(_INLINE.findall(line)) for line in lines) >= 2:
        return HOLDS
    return ABOUT if _ABOUT.search(text.lower()) or _CASED.search(text) else ""


def without_code(text: str) -> str:
    """The text without fences and lines that look like code."""
    lines = _FENCE.sub("\n", text[:LOOKED_AT]).splitlines()
    return "\n".join(line for line in lines if not _LINE.match(line[:LINE]))
