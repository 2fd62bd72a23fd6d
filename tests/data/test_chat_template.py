"""Chat templates against Transformers' rendering, and templates that mean no good."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pytest

from llamita.data.chat_records import Message, RowError
from llamita.data.chat_template import ChatTemplate, chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from tests.data.chats import CHATS, MARKERS, byte_level, dicts, messages, theirs

PLAIN = [Message("user", "Hi"), Message("assistant", "Hello.")]


def chatml(chat: list[tuple[str, str]], prompt: bool) -> str:
    shown = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in chat)
    return shown + ("<|im_start|>assistant\n" if prompt else "")


def zephyr(chat: list[tuple[str, str]], prompt: bool) -> str:
    """As zephyr-7b and TinyLlama-1.1B-Chat-v1.0: a line with the role's mark, what was said, EOS,
    a line end."""
    shown = "".join(f"<|{role}|>\n{said}</s>\n" for role, said in chat)
    return shown + ("<|assistant|>\n" if prompt else "")


def llama_2(chat: list[tuple[str, str]], prompt: bool) -> str:
    """As Llama-2-7b-chat-hf: the system message within the first question; questions and answers
    without white space at their ends; BOS before every question, EOS after every answer."""
    system = ""
    if chat[0][0] == "system":
        system, chat = f"<<SYS>>\n{chat[0][1]}\n<</SYS>>\n\n", chat[1:]
    shown = ""
    for number, (role, said) in enumerate(chat):
        if role == "user":
            said = system + said if number == 0 else said
            shown += f"<s>[INST] {said.strip()} [/INST]"
        else:
            shown += f" {said.strip()} </s>"
    return shown


OFFICIAL = {"chatml": chatml, "zephyr": zephyr, "llama-2": llama_2}


@pytest.fixture(scope="module")
def marked() -> Tokenizer:
    return byte_level(*MARKERS)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("prompt", [False, True])
def test_named_templates_render_as_the_official_ones(
    marked: Tokenizer, name: str, prompt: bool
) -> None:
    template = chat_template(marked, name)
    reference = theirs(marked, template.source)
    for chat in CHATS:
        ours = template.render(messages(chat), add_generation_prompt=prompt)
        assert ours == OFFICIAL[name](chat, prompt)
        assert ours == reference.apply_chat_template(
            dicts(chat), tokenize=False, add_generation_prompt=prompt
        )


def test_the_dialect_is_that_of_transformers(marked: Tokenizer) -> None:
    source = """
    {%- set seen = namespace(count=0, roles=[]) %}
    {% for message in messages %}
      {% if message.role == 'system' %}{% continue %}{% endif %}
      {%- set seen.count = seen.count + 1 %}
      {{ message['role'] | upper ~ ' ' ~ (message | tojson(indent=1)) }}
      {% if tools is not none or documents is defined and documents %}never{% endif %}
      {% if seen.count > 3 %}{% break %}{% endif %}
      {{ message.content.split('\\n')[-1].strip() | replace('t', 'T') + '%s' % loop.index }}
    {% endfor %}
    {% macro twice(said) %}{{ said * 2 }}{{ caller() }}{% endmacro %}
    {% call twice(bos_token) %}{{ eos_token }}{% endcall %}
    {{ messages | map(attribute='role') | join(',') }} {{ range(3) | list }}
    {{ pad_token is defined }}
    {{ messages[1:] | selectattr('role', 'equalto', 'user') | list | length }}
    {{ '{}-{:>4}'.format('a', 'b') }} {{ dict(a=1).items() | list }} {{ unknown_variable }}
    {{ messages | batch(2) | first | length }}{{ 'a\nb' | indent(2) }}{{ 7 // 2 }}{{ 2 ** 3 }}
"""
    template = ChatTemplate("own", source, {"bos_token": "<s>", "eos_token": "</s>"})
    reference = theirs(marked, source)
    for chat in CHATS:
        assert template.render(messages(chat)) == reference.apply_chat_template(
            dicts(chat), tokenize=False
        )


def test_generation_marks_are_found_and_leave_no_trace(marked: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
        "{%- generation %}{{ m.content }}!{% endgeneration -%}{% else %}{{ m.content }}{% endif %}|"
        "{% endfor %}"
    )
    template = ChatTemplate("own", source)
    text, spans = template.render_marked(messages(CHATS[2]))
    assert text == template.render(messages(CHATS[2]))
    assert text == theirs(marked, source).apply_chat_template(dicts(CHATS[2]), tokenize=False)
    assert [text[start:stop] for start, stop in spans] == ["user!", "assistant!"]
    assert template.marks_answers
    assert not ChatTemplate("own", "{{ 'generation' }}").marks_answers


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages.append(messages[0]) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
]
ENDLESS = [
    "{{ range(10 ** 9) | list }}",
    "{{ range(100000000000) | list | length }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{% macro tree(n) %}{% if n %}{{ tree(n - 1) }}{{ tree(n - 1) }}{% endif %}{% endmacro %}"
    "{{ tree(60) }}",
    "{% set n = namespace(left=60) %}{% for a in [1, 1] recursive %}{% set n.left = n.left - 1 %}"
    "{% if loop.depth < 50 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ ['x' * 100000] * 100000 }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ ('x' * 99999).replace('x', 'y' * 99999) | length }}",
    "{{ ('x' * 99999) | replace('x', 'y' * 99999) | length }}",
    "{{ ('x' * 99999).join('y' * 99999) | length }}",
    "{{ (('x' * 99999,) * 300) | join('y' * 99999) | length }}",
    "{{ ('\\t' * 99999).expandtabs(99999) | length }}",
    "{{ [1] | tojson(indent=10 ** 9) }}",
    "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=3) %}{% for a in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "{% set n = namespace(s=['x']) %}{% for a in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s }}",
    "{% set n = namespace(s=['x']) %}{% for a in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s | string | length }}",
    "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_does_not_get_out_of_its_sandbox(source: str) -> None:
    with pytest.raises((UserError, RowError)) as caught:
        ChatTemplate("own", source).render(PLAIN)
    assert "the chat template own" in str(caught.value)
    assert [turn.content for turn in PLAIN] == ["Hi", "Hello."]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_comes_to_an_end(source: str) -> None:
    started, held = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="the chat template own does what no chat template needs"):
        ChatTemplate("own", source).render(PLAIN)
    assert time.monotonic() - started < 30
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    assert sys.platform != "linux" or grown < 500_000  # KiB


def test_long_chats_are_within_the_limits() -> None:
    chat = [Message(("user", "assistant")[number % 2], "word " * 2000) for number in range(1000)]
    template = ChatTemplate(
        "own", "{% for m in messages %}{{ m.role ~ m.content|trim }}{% endfor %}"
    )
    assert len(template.render(chat)) > 9_000_000


def test_errors_of_a_template_say_where() -> None:
    with pytest.raises(UserError, match=r"own is no Jinja: .*'endfor'.* \(line 3\)"):
        ChatTemplate("own", "a\nb\n{% endfor %}")
    refusing = ChatTemplate("own", "{{ raise_exception('only on Sundays') }}")
    with pytest.raises(RowError, match="the chat template own refuses it: only on Sundays"):
        refusing.render(PLAIN)
    failing = ChatTemplate("own", "{{ messages[9].content + eos_token }}")
    with pytest.raises(RowError, match=r"own fails: .*it uses eos_token, which the tokenizer has"):
        failing.render(PLAIN)
    with pytest.raises(RowError, match="own fails: TypeError"):
        ChatTemplate("own", "{{ messages[0].content + 1 }}").render(PLAIN)


def test_templates_refuse_roles_and_orders_that_they_have_no_mark_for(marked: Tokenizer) -> None:
    tool = [*PLAIN, Message("tool", "7")]
    with pytest.raises(RowError, match="zephyr refuses it: it has no mark for the role tool"):
        chat_template(marked, "zephyr").render(tool)
    with pytest.raises(RowError, match="llama-2 refuses it: user and assistant must take turns"):
        chat_template(marked, "llama-2").render(tool)
    assert "<|im_start|>tool\n7<|im_end|>" in chat_template(marked, "chatml").render(tool)


def test_which_template_a_tokenizer_gets(marked: Tokenizer, tmp_path: Path) -> None:
    plain = byte_level()
    assert chat_template(marked).name == "chatml"
    assert chat_template(plain).name == "zephyr"
    own = Tokenizer(
        plain.to_json(), chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert chat_template(own).render(PLAIN) == "HiHello."
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}({{ m.content }}){% endfor %}")
    assert chat_template(own, str(tmp_path / "mine.jinja")).render(PLAIN) == "(Hi)(Hello.)"
    assert chat_template(own, str(tmp_path / "mine.jinja")).name == "mine.jinja"


def test_templates_that_cannot_be_had(marked: Tokenizer, tmp_path: Path) -> None:
    plain = byte_level()
    with pytest.raises(
        UserError,
        match=r"chatml needs <\|im_start\|> and <\|im_end\|>, which the .* has not; use zephyr or "
        "llama-2 instead",
    ):
        chat_template(plain, "chatml")
    bare = Tokenizer(plain.to_json())
    with pytest.raises(UserError, match="zephyr needs eos_token"):
        chat_template(bare)
    with pytest.raises(UserError, match="llama-2 needs bos_token and eos_token"):
        chat_template(bare, "llama-2")
    with pytest.raises(UserError, match=r"no chat template 'zepyhr'. Did you mean 'zephyr'"):
        chat_template(marked, "zepyhr")
    with pytest.raises(UserError, match=r"no chat template .*none.jinja: no such file"):
        chat_template(marked, str(tmp_path / "none.jinja"))
    (tmp_path / "bad.jinja").write_text("{{ messages[0].text.strip() }}")
    with pytest.raises(UserError, match=r"bad.jinja fails: .* on a plain question and answer"):
        chat_template(marked, str(tmp_path / "bad.jinja"))
    (tmp_path / "mute.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match=r"mute.jinja leaves the assistant's answer out"):
        chat_template(marked, str(tmp_path / "mute.jinja"))


def test_what_ends_a_turn(marked: Tokenizer) -> None:
    end = marked.id_of("<|im_end|>")
    assert end_of_turn_ids(marked, chat_template(marked, "chatml")) == (end, 1)
    assert end_of_turn_ids(marked, chat_template(marked, "zephyr")) == (1,)
    assert end_of_turn_ids(marked, chat_template(marked, "llama-2")) == (1,)
    # with no mark of its own, the end of the text
    unmarked = ChatTemplate("own", "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert end_of_turn_ids(marked, unmarked) == (1,)
