"""Renders conversations with a tokenizer's chat template, and finds what the assistant wrote.

Templates are Jinja, as in Hugging Face's `tokenizer_config.json` or `chat_template.jinja`, and are
rendered in a sandbox with the same settings and functions as transformers (5.x,
utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2_jax.data.examples.fields import Row
from gpt2_jax.data.examples.records import Completion, Dialogue
from gpt2_jax.errors import UserError, shortened
from gpt2_jax.files import read_fields, read_file, write_json

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")


class ChatTemplate:
    """A chat template.

    Args:
      source: the template's text.
      tokens: special tokens as text by name, such as `bos_token`, which templates refer to.

    Raises:
      UserError: if the template is not valid.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source, self.tokens = source, dict(tokens)
        self._template = self._compile()

    @cached_property
    def marks_completions(self) -> bool:
        """Whether the template marks what the assistant generates with `{% generation %}`."""
        return _GENERATION.search(self.source) is not None

    def _compile(self) -> Any:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_generation_extension(), jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template is not valid: {shortened(error)}; set data.chat_template to a "
                f"{TEMPLATE} or {TOKENIZER_CONFIG}"
            ) from None

    def render(self, dialogue: Dialogue, n_messages: int, add_generation_prompt: bool) -> str:
        """Returns the first messages of a conversation as text.

        Raises:
          UserError: if the template refuses them, naming the file and line.
        """
        return _MARK.sub("", self._render(dialogue, n_messages, add_generation_prompt))

    def _render(self, dialogue: Dialogue, n_messages: int, add_generation_prompt: bool) -> str:
        import jinja2

        try:
            text: str = self._template.render(
                messages=dialogue.messages[:n_messages],
                tools=dialogue.tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{dialogue.where}: the chat template refuses the messages: {shortened(error)}"
            ) from None
        return text

    def completions(self, dialogue: Dialogue) -> tuple[str, list[tuple[int, int]]]:
        """Returns a conversation as text, and the characters that the assistant generates.

        They are marked by `{% generation %}` in the template, or else each message of the assistant
        without the generation prompt before it.

        Raises:
          UserError: if the text of an earlier part of the conversation is not the beginning of that
            of the whole, or the assistant writes nothing, naming the file and line.
        """
        if self.marks_completions:
            text, spans = _unmark(self._render(dialogue, len(dialogue.messages), False))
        else:
            text, spans = self._by_prefixes(dialogue)
        spans = [(start, end) for start, end in spans if end > start]
        if not spans:
            raise UserError(f"{dialogue.where}: the assistant writes nothing; remove it")
        return text, spans

    def _by_prefixes(self, dialogue: Dialogue) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(dialogue, len(dialogue.messages), False)
        spans = []
        for n, message in enumerate(dialogue.messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(dialogue, n, True)
            whole = self.render(dialogue, n + 1, False)
            if not text.startswith(whole) or not whole.startswith(prompt):
                raise UserError(
                    f"{dialogue.where}: the chat template writes message {n} differently if others "
                    "follow it, so what the assistant writes is unknown; mark it with "
                    "{% generation %} in the template, or keep only the last answer"
                )
            spans.append((len(prompt), len(whole)))
        return text, spans


_START, _END = "\ue000\ue010", "\ue001\ue010"  # private use, which no tokenizer's template has
_MARK = re.compile(f"{_START}|{_END}")


def _unmark(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns a text without marks, and the characters between each pair of marks."""
    parts, spans, length = _MARK.split(text), [], 0
    for n, part in enumerate(parts):
        if n % 2:
            spans.append((length, length + len(part)))
        length += len(part)
    return "".join(parts), spans


def _generation_extension() -> Any:
    """Returns a Jinja extension for `{% generation %}`, which marks the text of its block."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{_START}{caller()}{_END}"

    return Generation


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Replaces Jinja's filter, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def load_chat_template(path: Path, tokens: Mapping[str, str]) -> ChatTemplate:
    """Loads a chat template from a Jinja file, or a `tokenizer_config.json`.

    Args:
      tokens: special tokens by name; those in `tokenizer_config.json` take precedence.

    Raises:
      UserError: if the file cannot be read or has no valid template.
    """
    if path.suffix != ".json":
        try:
            return ChatTemplate(read_file(path).decode(), tokens)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason})") from None
    fields = read_fields(path)
    source = fields.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise UserError(f"{path} has no chat_template; set data.chat_template to a {TEMPLATE}")
    return ChatTemplate(source, {**tokens, **_special_tokens(fields)})


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _TOKEN_NAMES:
        value = fields.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def find_chat_template(tokenizer_file: str) -> Path | None:
    """Returns the chat template next to a tokenizer.json; None if there is none."""
    folder = Path(tokenizer_file).parent
    if (folder / TEMPLATE).is_file():
        return folder / TEMPLATE
    config = folder / TOKENIZER_CONFIG
    return config if config.is_file() and read_fields(config).get("chat_template") else None


def save_chat_template(folder: Path, template: ChatTemplate) -> None:
    """Saves a template next to a run's tokenizer, where `find_chat_template` finds it."""
    write_json(folder / TOKENIZER_CONFIG, {"chat_template": template.source, **template.tokens})


def chat_record(row: Row, columns: Mapping[str, str]) -> Dialogue | Completion:
    """Returns the conversation of a row with `messages`, or its prompt and completion.

    Raises:
      UserError: if a message has no role or content, none is from the assistant, or the completion
        is empty, naming the file and line.
    """
    if row.get(columns["messages"], None) is None:
        completion = row.text(columns["completion"])
        if not completion.strip():
            raise UserError(f"{row.where}: the completion is empty; remove it, or fill it in")
        return Completion(row.text(columns["prompt"]), completion, row.where)
    messages = [_message(one) for one in row.rows(columns["messages"])]
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(
            f"{row.where} has no message of the assistant to learn from; remove it, or rename the "
            "role to assistant"
        )
    return Dialogue(messages, row.get("tools", None), row.where)


def _message(row: Row) -> dict[str, Any]:
    role = row.get("role", None)
    if not isinstance(row.value, dict) or not isinstance(role, str):
        raise UserError(f"{row.where}: a message has no role; write it as role and content")
    if "content" not in row.value:
        raise UserError(f"{row.where}: a message of the {role} has no content")
    if isinstance(row.value["content"], str):
        row.text("content")
    return dict(row.value)
