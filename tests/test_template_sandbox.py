"""Templates that would stop a process, and templates that must render as they always did."""

import resource
import sys
import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from keras_mtp.data.chat_template import compile_template
from keras_mtp.data.template_budget import Budget, TooMuch
from keras_mtp.errors import UserError

pytestmark = pytest.mark.any_backend

MESSAGES = [{"role": "user", "content": "Hi " * 20}, {"role": "assistant", "content": "Hello!"}]
GROW = "{%% set ns = namespace(x='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"

TOO_MUCH = {
    "loops without output": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "a loop over much text": "{% set y %}{% for a in range(99999) %}" + "z" * 50_000 + "{% endfor %}{% endset %}",
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated from the left": "{{ 10000000000 * 'a' }}",
    "repeated list": "{{ [0] * 10000000000 }}",
    "power": "{{ 10**10**10 }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by ~": GROW % "ns.x ~ ns.x",
    "doubled by +": GROW % "ns.x + ns.x",
    "doubled list": GROW % "[ns.x, ns.x]",
    "doubled tuple": GROW % "(ns.x, ns.x)",
    "doubled dict": GROW % "{'a': ns.x, 'b': ns.x}",
    "doubled dict()": GROW % "dict(a=ns.x, b=ns.x)",
    "doubled list by +": GROW % "[ns.x] + [ns.x] + [ns.x]",
    "doubled block": GROW.replace("{%% set ns.x = %s %%}", "{%% set y %%}{{ ns.x }}{{ ns.x }}{%% endset %%}{%% set ns.x = y %%}")
    % (),
    "replace": GROW % "ns.x | replace('a', 'aaaaaaaaaa')",
    "replace()": GROW % "ns.x.replace('', 'aaaaaaaaaa')",
    "join": GROW % "range(1000) | join(ns.x)",
    "join()": GROW % "ns.x.join(ns.x)",
    "map": GROW % "range(9999) | map('replace', '', ns.x) | list",
    "map with a default": "{{ range(99999) | map(attribute='x', default='a' * 100000) | join }}",
    "slices": "{% set x = 'a' * 100000 %}" + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(4000)),
    "indent": "{{ 'a\nb' | indent(10000000000) }}",
    "negative indent first": "{{ 'a' | indent(-1000000000000000) }}{{ 'a' * 30000000 }}",
    "rounded": "{{ 5 | round(-3000000) }}",
    "rounded up": "{{ 1 | round(3000000, 'ceil') }}",
    "rounded by name": "{{ 1 | round(precision=3000000) }}",
    "indented JSON": "{{ [1] | tojson(indent=10000000000) }}",
    "deep indented JSON": "{% set ns = namespace(x=range(20000) | list) %}{% for i in range(50) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x | tojson(indent=60) }}",
    "macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "range": "{{ range(10**12) | list }}",
    "slow comparisons": "{% set x = 'a' * 900000 ~ 'b' %}{% set y = 'a' * 900000 ~ 'c' %}{% for i in range(99999) %}"
    + "{% if x == y %}{% endif %}" * 1000
    + "{% endfor %}",
    "searches in a loop": "{% set x = range(99999) | list %}{% for i in range(99999) %}{% if -1 in x %}{% endif %}{% endfor %}",
    "searches in a row": "{% set x = range(99999) | list %}" + "{% if -1 in x %}{% endif %}" * 900,
    "searches by a test": "{% set x = range(99999) | list %}" + "{% if -1 is in(x) %}{% endif %}" * 900,
    "searches by a filter": "{{ range(99999) | select('in', range(-99999, 0) | list) | list }}",
    "calls that fail late": "{% for i in range(99999) %}{% for j in range(99999) %}{% if loop.last %}x{% endif %}{% endfor %}"
    "{% endfor %}",
    "folded when compiled": "{{ 'a' | upper | replace('', 'b' * 1000) | replace('', 'c' * 1000) | replace('', 'd' * 1000) }}",
}  # fmt: skip

NOT_THERE = {
    "center": "{{ 'a' | center(10000000000) }}",
    "center()": "{{ 'a'.center(10000000000) }}",
    "expandtabs()": "{{ '\t'.expandtabs(10000000000) }}",
    "zfill()": "{{ 'a'.zfill(10000000000) }}",
    "%": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '%10000000000d' | format(1) }}",
    "format()": "{{ '{:10000000000}'.format(1) }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "varargs": "{% macro f() %}{{ f(varargs, varargs) }}{% endmacro %}{{ f() }}",
    "namespaces in namespaces": GROW % "namespace(a=ns.x, b=ns.x)",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ (messages | map(attribute='__class__') | first).mro() }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "globals": "{{ raise_exception.__globals__['os'].system('true') }}",
    "globals of a class": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "code of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__code__ }}",
    "changing the messages": "{{ messages.append(1) }}",
    "too long": "{{ 1 }}" * 20_000,
    "too deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "too many blocks": "{% if 1 %}" * 3000,
    "a number of 9,000 digits": "{{ " + "9" * 9000 + " }}",
    "division by zero": "{{ 1 / 0 }}",
}


@pytest.fixture(autouse=True)
def _little_memory():
    """Where a bound fails, the test does, and not the machine."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _render(template: str) -> str:
    return compile_template(template)(messages=MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize("template", TOO_MUCH.values(), ids=TOO_MUCH)
def test_templates_that_would_take_for_ever_are_stopped(template):
    start = time.process_time()
    with pytest.raises(UserError, match="The chat template") as error:
        _render(template)
    assert time.process_time() - start < 30  # a bound fails by orders of magnitude, or not at all
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", NOT_THERE.values(), ids=NOT_THERE)
def test_what_chat_templates_do_not_need_is_not_there(template):
    with pytest.raises(UserError, match=r"[Tt]he chat template|A chat template") as error:
        _render(template)
    assert "\n" not in str(error.value)


LLAMA_3 = """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in loop_messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ORDINARY = {
    "Llama 3": LLAMA_3,
    "concatenation": "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ loop.index ~ none ~ 1.5 }}{% endfor %}",
    "loop variables": "{% for m in messages %}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}"
    "{{ loop.previtem is defined }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% else %}none{% endfor %}",
    "filtered loop": "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m.role }}{% endfor %}",
    "nested loop": "{% for m in messages %}{% for c in m.content[:3] %}{{ c }}{% if c == ' ' %}{% continue %}{% endif %}-"
    "{% endfor %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}"
    "{% set ns.last = m.content %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "macros": "{% macro turn(role, text='-') %}[{{ role }}|{{ text | trim }}]{% endmacro %}"
    "{% for m in messages %}{{ turn(m.role, m.content) }}{{ turn('x') }}{% endfor %}",
    "call": "{% macro box() %}<{{ caller() }}>{% endmacro %}{% call box() %}in{% endcall %}",
    "set block": "{% set block %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}{{ block | upper }}",
    "filter block": "{% filter upper %}a{{ messages[0].role }}{% endfilter %}",
    "containers": "{% set a = [1, 'b', (2, 3), {'k': none}] %}{{ a }}{{ a[1:] }}{% set x, y = 'p', 'q' %}{{ x }}{{ y }}"
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
    "methods": "{{ messages[0].content.split(' ')[-1].strip() }}{{ 'a<think>b</think> c'.split('</think>')[-1].lstrip() }}"
    "{{ 'aXb'.replace('X', '--') }}{{ ', '.join(['a', 'b']) }}{{ 'abc'.startswith('a') }}{{ messages[0].get('name', 'x') }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}"
    "{{ 'a\nb' | indent(2) }}{{ 'b,a' | replace(',', ';') }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [3, 1] | sort | first }}"
    "{{ nothing | default('d') }}{{ '7' | int + 1 }}{{ [1, 1] | unique | list }}{{ messages | length }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}"
    "{{ [1, 2] | tojson(separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "arithmetic": "{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 10 }}{{ 7 / 2 }}{{ 2 * 'ab' }}{{ -3 + 1 }}{{ [1] + [2] }}{{ 'a' * 3 }}",
    "tests": "{{ messages is iterable }}{{ messages[0] is mapping }}{{ 'x' is string }}{{ zero is defined }}{{ 3 is odd }}"
    "{{ 'a' in 'abc' }}{{ 'z' not in ['a'] }}{{ 1 < 2 <= 2 }}",
    "white space": "  {% if true %}\n  a  \n  {%- endif %}  \n\n{# gone #}\n  b\n",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "safe": "{{ '<b>' | safe ~ '<i>' }}{{ '<b>' | e }}{{ '<b>' | safe + '<i>' }}",
}


@pytest.mark.parametrize("template", ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize(
    "messages", [MESSAGES, [{"role": "system", "content": " S \n"}, *MESSAGES]], ids=[2, 3]
)
def test_ordinary_templates_render_as_in_transformers(template, messages):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True, tools=None, documents=None, **names
    )
    rendered = compile_template(template)(messages=messages, add_generation_prompt=True, **names)
    assert rendered == expected and rendered


def test_long_conversations_stay_within_the_budget():
    messages = [
        {"role": role, "content": "word " * 200} for _ in range(300) for role in ("user", "assistant")
    ]
    assert (
        len(compile_template(LLAMA_3)(messages=messages, add_generation_prompt=False, bos_token="")) > 600_000
    )


def test_every_rendering_has_a_budget_of_its_own():
    render = compile_template("{% for i in range(9999) %}{{ i }}{% endfor %}")
    assert len({render(messages=MESSAGES) for _ in range(60)}) == 1


def test_a_budget_weighs_what_is_held_twice_twice():
    text, budget = "x" * 10, Budget(1000)
    assert budget.weigh([text, text]) == budget.weigh([[text], text]) - 1
    with pytest.raises(TooMuch):
        Budget(20).weigh([text, text])


def test_upstream_still_has_no_bounds():
    """Once Jinja2's own sandbox stops this, ours may be more than is needed."""
    assert len(ImmutableSandboxedEnvironment().from_string("{{ 'a' * 10**7 }}").render()) == 10**7
