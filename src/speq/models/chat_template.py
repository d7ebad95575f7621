"""Chat templates: the Jinja programs in checkpoints that turn a conversation into the text a model was trained on.

They are other people's programs, so they run in Jinja's immutable sandbox, with the few names that Hugging Face's
templates may rely on: ``messages``, ``tools``, ``documents``, ``add_generation_prompt``, the special tokens,
``raise_exception``, ``strftime_now`` and a ``tojson`` that leaves text unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from speq.errors import SpeqError

Message = Mapping[str, Any]

DIRECTORY = "additional_chat_templates"
"""Where a checkpoint keeps templates other than the default one, each a ``.jinja`` file by its name."""

# What a program may fail with; the sandbox stops it before anything worse.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, MemoryError, NameError, OSError,
    RuntimeError, StopIteration, SyntaxError, SystemError, TypeError, ValueError,
)  # fmt: skip
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Args:
            source: Jinja text.
            special_tokens: values of ``bos_token``, ``eos_token`` and the like.

        Raises:
            SpeqError: the text is no Jinja template.
        """
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` marks a model's own words for training; the text between the tags is kept as it
            is, in a scope of its own."""

            tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

            def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, *_FAILURES) as error:
            raise SpeqError(f"the model's chat template cannot be read ({_line(error)}); use --raw") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text, ending where the model is to speak if ``add_generation_prompt``.

        Entries that are None are left out, and reasoning is known by all the names that templates use for it.

        Raises:
            SpeqError: there is no message, or the template refuses these messages, or fails.
        """
        from jinja2 import TemplateError

        if not messages:
            raise SpeqError("the conversation is empty: give at least one message")
        for message in messages:
            if not isinstance(message, Mapping):
                raise SpeqError(f"a message is {message!r}; a mapping with role and content is expected")
        try:
            return self._template.render(
                messages=[_prepared(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, *_FAILURES) as error:
            raise SpeqError(f"the model's chat template refuses this conversation: {_line(error)}; use --raw") from None


def read_templates(directory: Path, settings: Mapping[str, Any], model: str) -> dict[str, str]:
    """The chat templates of a checkpoint by name; the one that conversations use is ``default``.

    Files of their own (``chat_template.jinja`` is the default one, others lie in ``additional_chat_templates``) go
    before the entry of ``tokenizer_config.json``, which may be one template, an object of names, or a list of
    ``{"name", "template"}``; ``chat_template.json``, which multimodal checkpoints have, comes last.

    Args:
        directory: of the checkpoint.
        settings: content of ``tokenizer_config.json``.
        model: its name, for messages.

    Raises:
        SpeqError: a file cannot be read, or an entry is of another shape.
    """
    files = {path.stem: path for path in sorted((directory / DIRECTORY).glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    if files:
        return {name: _read(file, model) for name, file in files.items()}
    if settings.get("chat_template") is not None:
        return _named(settings["chat_template"], "tokenizer_config.json", model)
    last = directory / "chat_template.json"
    if not last.is_file():
        return {}
    try:
        content = json.loads(_read(last, model))
    except (ValueError, RecursionError) as error:
        raise SpeqError(f"{model}/{last.name}: not readable JSON ({error}); use --raw") from None
    template = content.get("chat_template") if isinstance(content, dict) else None
    return {} if template is None else _named(template, last.name, model)


def _read(file: Path, model: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpeqError(f"{model}/{file.name}: not a readable chat template ({_line(error)}); use --raw") from None


def _named(entry: Any, file: str, model: str) -> dict[str, str]:
    """Templates by name, of the shapes that files hold them in."""
    if isinstance(entry, str):
        return {"default": entry}
    if isinstance(entry, list) and all(isinstance(item, dict) for item in entry):
        entry = {item.get("name"): item.get("template") for item in entry}
    if isinstance(entry, dict) and all(isinstance(text, str) for item in entry.items() for text in item):
        return entry
    raise SpeqError(f"{model}/{file}: chat_template is neither a template nor templates by name; use --raw")


def _prepared(message: Message) -> dict[str, Any]:
    """A message of plain values, as templates may rely on."""
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """JSON's types; anything else is only named, because a template must not call its methods."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return f"<{type(value).__name__}>"


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
