"""From chat messages to token ids: by the tokenizer's chat template, or by a plain one where it has none.

The plain one is, with a blank line between the parts and the system text first as it is::

    SYSTEM

    User: TEXT

    Assistant: TEXT

    User: TEXT

    Assistant:

An answer to it ends where the model goes on to write ``User:`` after a blank line, and loses the one space in front.

A template that refuses a system message, or leaves it out, gets the system text at the head of the first user message,
with a blank line between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgym.errors import BadRequest
from instructgym.types import Message

__all__ = ["PLAIN_STOP", "Prompts", "fold_system", "plain_prompt"]

PLAIN_STOP = "\n\nUser:"
_PLAIN_NAMES = {"user": "User: ", "assistant": "Assistant: "}
_PROBE = "7f3a system probe"


class Prompts:
    """Writes prompts for one tokenizer. `stop` are strings that end an answer besides those that a request names."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self.plain = tokenizer.chat_template is None
        self.stop = (PLAIN_STOP,) if self.plain else ()
        self._keeps_system = self.plain or self._probe()

    def ids(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any]) -> list[int]:
        """Token ids of the prompt, up to where the answer begins. Raises `BadRequest` if the template refuses it."""
        text = self.text(messages, template_kwargs)
        # A template has written the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=self.plain)["input_ids"])

    def text(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        is_open: bool = True,
    ) -> str:
        """The prompt, up to where the answer begins; a conversation that has ended with `is_open` False.

        Raises `BadRequest` if the template refuses it.
        """
        if self.plain:
            if template_kwargs:
                raise BadRequest(
                    f"the tokenizer of '{self._name}' has no chat template that could read chat_template_kwargs; "
                    "take them out of sampling.extra"
                )
            return plain_prompt(messages)
        import jinja2

        try:
            shown = messages if self._keeps_system else fold_system(messages)
            return self._render(shown, template_kwargs or {}, is_open=is_open)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise BadRequest(
                f"the chat template of '{self._name}' refuses messages of the roles {roles}: {error}"
            ) from error

    def _render(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any], *, is_open: bool = True) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=is_open,
                **template_kwargs,
            )
        )

    def _probe(self) -> bool:
        """Whether a system message stands in the prompt: some templates raise, some drop it in silence."""
        import jinja2

        try:
            return _PROBE in self._render([Message("system", _PROBE), Message("user", "hello")], {})
        except (jinja2.TemplateError, TypeError, ValueError):
            return False


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The messages without system messages, whose texts stand at the head of the first user message."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return rest
    first = next((index for index, message in enumerate(rest) if message.role == "user"), None)
    if first is None:
        return [Message("user", system), *rest]
    rest[first] = Message("user", f"{system}\n\n{rest[first].content}")
    return rest


def plain_prompt(messages: Sequence[Message]) -> str:
    """The prompt for a tokenizer without a chat template; see the head of this file."""
    parts = [f"{_PLAIN_NAMES.get(message.role, '')}{message.content}" for message in messages]
    return "\n\n".join([*parts, "Assistant:"])
