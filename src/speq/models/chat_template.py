"""Chat templates: the Jinja programs in checkpoints that turn a conversation into the text a model was trained on.

They are other people's programs, so they run in Jinja's immutable sandbox, with the few names that Hugging Face's
templates may rely on: ``messages``, ``add_generation_prompt``, the special tokens, ``raise_exception``,
``strftime_now`` and a ``tojson`` that leaves text unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from speq.errors import SpeqError

Message = Mapping[str, Any]


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
            is."""

            tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

            def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise SpeqError(f"the model's chat template cannot be read ({_line(error)}); use --raw") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text, ending where the model is to speak if ``add_generation_prompt``.

        Raises:
            SpeqError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError) as error:
            raise SpeqError(f"the model's chat template refuses this conversation: {_line(error)}") from None


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
