"""Chat templates are programs of others: whatever they do, they end, with one message and little memory."""

from __future__ import annotations

import copy
import json
import resource
import time

import pytest
from transformers.utils import chat_template_utils

from assent import cli
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin, Response
from assent.data.sandbox import Bounded
from assent.errors import ModelError

USUAL = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
ENDLESS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered ranges": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop over its own list": "{% set ns = namespace(a=[1]) %}{% for i in range(99999) %}{% set ns.a = ns.a + ns.a %}"
    "{% endfor %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for i in [[1, 1]] recursive %}{{ loop([[1, 1], [1, 1]]) }}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "list times": "{{ ([0] * 10**10)|length }}",
    "times twice": "{{ (('a' * 10**7) * 10**7)|length }}",
    "power": "{{ 10**(10**10) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "center": "{{ 'a'|center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(width=10**10) if false else 'a'.zfill(10**10) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "star": "{{ '%*d'|format(10**10, 1) }}",
    "str.format": "{{ '{:>10000000000}'.format('a') }}",
    "expandtabs": "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "indent": "{{ ('\n' * 10**6)|indent(10**6) }}",
    "replace": "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "str.replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "join": "{{ range(99999)|list|join('b' * 10**6) }}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by plus": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}",
    "doubling block": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling argument": "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ m('a', 60) }}",
    "laughs": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "laughs as json": "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
    "{% endfor %}{{ ns.x|tojson }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}",
    "slices": "{{ 'a'|slice(10**9)|list }}",
    "json": "{{ {'a': 1}|tojson(indent=10**10) }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "rounded": "{{ 1.5|round(10**9, 'ceil') }}",
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("trick", ENDLESS)
def test_a_template_without_end_is_refused_when_it_is_read(tokenizer, trick):
    hostile = copy.deepcopy(tokenizer)
    hostile.chat_template = ENDLESS[trick] + USUAL
    before, start = peak(), time.process_time()
    with pytest.raises(ModelError, match="the chat template of .* is unusable: ") as caught:
        Chat(hostile)
    assert time.process_time() - start < 10 and peak() - before < 400_000
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_row_on_which_it_does_not_end_is_a_problem_row(tokenizer):
    hostile = copy.deepcopy(tokenizer)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    hostile.chat_template = f"{{% if 'forever' in messages[0]['content'] %}}{loops}{{% endif %}}" + USUAL
    rows = [
        Example((Message("user", text),), (Response((Message("assistant", "Yes."),)),), origin=Origin("rows.jsonl", n))
        for n, text in enumerate(("One?", "Now and forever?", "Two?"), 1)
    ]
    trees, problems = Chat(hostile).trees(rows, 500)
    assert [tree.key for tree in trees] == [0, 2]
    assert "rows.jsonl:2" in str(problems[0]) and "cannot write the conversation: more than 1,000,000 st" in str(
        problems[0]
    )


def test_many_turns_and_large_texts_are_no_trick(tokenizer):
    usual = copy.deepcopy(tokenizer)
    usual.chat_template = USUAL
    turns = [Message("user", "Egg?"), Message("assistant", "Yes.")] * 500
    row = Example((*turns[:999],), (Response((Message("assistant", "x" * 100_000),)),))
    assert Chat(usual).tree(row, 2**20).num_tokens > 5_000


def test_transformers_renders_within_the_limits(tokenizer):
    """Its environment is ours, and gives the same text."""
    compiled = chat_template_utils._compile_jinja_template(USUAL + "{{ 1 }}")
    assert type(compiled.environment) is Bounded
    assert compiled.render(messages=[{"role": "user", "content": "a"}]) == "<|im_start|>user\na<|im_end|>1"


@pytest.mark.parametrize("template", ["{% for", "{{ " + "(" * 5000 + " }}", "{{ messages[0].x.y }}"])
def test_a_broken_template_is_one_line_on_the_command_line(tiny_model_dir, tmp_path, capsys, template):
    (tmp_path / "t.jinja").write_text(template)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    words = ["data", str(tmp_path / "rows.jsonl"), "--model", str(tiny_model_dir)]
    words += ["--chat_template", str(tmp_path / "t.jinja"), "--template_kwargs", "thinking:true"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
