"""Chat templates are rendered as in transformers, and the assistant's text is found."""

import json

import pytest

from gpt2_jax.data.examples.chat import (
    ChatTemplate,
    find_chat_template,
    load_chat_template,
)
from gpt2_jax.data.examples.records import Dialogue
from gpt2_jax.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{%- for m in messages %}\n"
    "    {%- if m.role == 'assistant' %}\n"
    "A:{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n"
    "    {%- else %}\n"
    "U:{{ m.content }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}"
)
LAST_ONLY = (
    "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else 'x' }}{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "see you"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def dialogue(messages=MESSAGES):
    return Dialogue(messages, None, "a.jsonl line 3")


def written(template, messages=MESSAGES):
    text, spans = ChatTemplate(template, TOKENS).completions(dialogue(messages))
    return [text[start:end] for start, end in spans]


def test_completions_follow_the_generation_prompt():
    assert written(CHATML) == ["hello<|im_end|>\n", "see you<|im_end|>\n"]
    text = ChatTemplate(CHATML, {}).render(dialogue(), 1, True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_completions_marked_in_the_template():
    assert written(MARKED) == ["hello</s>", "see you</s>"]
    text, _ = ChatTemplate(MARKED, TOKENS).completions(dialogue())
    assert text == "<s>\nU:hi\nA:hello</s>\nU:bye\nA:see you</s>".replace("\n", "")
    assert ChatTemplate(MARKED, TOKENS).render(dialogue(), 4, False) == text


def test_template_that_rewrites_earlier_messages_is_refused():
    with pytest.raises(UserError, match=r"a\.jsonl line 3: the chat template writes message 1"):
        written(LAST_ONLY)
    assert written(LAST_ONLY, MESSAGES[:2]) == ["hello"]


def test_functions_and_filters_of_transformers():
    source = "{{ {'a': '<é>'} | tojson }}{{ strftime_now('%Y') | length }}{{ messages[0].role }}"
    assert ChatTemplate(source, {}).render(dialogue(), 1, False) == '{"a": "<é>"}4user'
    with pytest.raises(UserError, match=r"line 3: the chat template refuses the messages: no sys"):
        ChatTemplate("{{ raise_exception('no system') }}", {}).render(dialogue(), 1, False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
    ],
)
def test_templates_are_sandboxed(source):
    with pytest.raises(UserError, match="the chat template refuses"):
        ChatTemplate(source, {}).render(dialogue(), 4, False)


def test_invalid_template_is_a_one_line_error():
    with pytest.raises(UserError, match=r"the chat template is not valid: .*data\.chat_template"):
        ChatTemplate("{% for %}", {})


def test_templates_of_files(tmp_path):
    assert find_chat_template(str(tmp_path / "tokenizer.json")) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": MARKED, "eos_token": {"content": "<end>"}}))
    assert find_chat_template(str(tmp_path / "tokenizer.json")) == config
    loaded = load_chat_template(config, TOKENS)
    assert loaded.source == MARKED and loaded.tokens == {"bos_token": "<s>", "eos_token": "<end>"}
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    found = find_chat_template(str(tmp_path / "tokenizer.json"))
    assert load_chat_template(found, {}).source == CHATML
    config.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json has no chat_template"):
        load_chat_template(config, {})
