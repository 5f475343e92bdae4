"""How many tokens is this? The model's own tokenizer and chat template, without transformers."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from app.errors import InvalidRequest
from app.jobs.forgery import ForgedTokens


def tokenizer_digest(tokenizer_json: bytes, chat_template: str | None) -> str:
    """Names a tokenizer with its template, hex of SHA-256."""
    digest = hashlib.sha256(tokenizer_json)
    digest.update(b"\x00" + (chat_template or "").encode())
    return digest.hexdigest()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in nested lists and objects, names of members too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same with each text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _mapped(each, change) for name, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates read it."""
    turn = {"content": ""} | {name: value for name, value in message.items() if value is not None}
    if "tool_calls" in turn:
        turn["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": _read(call["function"]["arguments"])}}
            for call in turn["tool_calls"]
        ]
    return turn


def _read(arguments: str) -> Any:
    """The object that a call's arguments write, or the text where they write none: a call may have been cut off."""
    import json

    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


class PromptEncoder:
    """Turns a prompt or a conversation into token ids. Thread-safe; encoding releases the GIL."""

    def __init__(self, tokenizer_json: bytes, chat_template: str | None, special_tokens: dict[str, str]) -> None:
        self.tokenizer = Tokenizer.from_buffer(tokenizer_json)
        # A stored tokenizer may ask to cut or pad: neither may happen to a prompt behind its sender's back.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special_tokens = special_tokens
        self._forged = ForgedTokens(self.tokenizer)
        self._template = None
        if chat_template:
            env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
            env.filters["tojson"] = _tojson
            env.globals["raise_exception"] = _refuse
            env.globals["strftime_now"] = lambda fmt: datetime.now(UTC).strftime(fmt)
            self._template = env.from_string(chat_template)
            # Each rendering copies them: a plain dict costs a tenth of the chain of maps that Jinja makes.
            self._template.globals = dict(self._template.globals)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain prompt, with the special tokens that the tokenizer itself puts around a text."""
        return self._ids(text, add_special_tokens=True)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The conversation as the model was taught to see it, up to where its answer begins.

        Templates read `content` as a text and a call's `arguments` as an object: they are handed so.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest("messages: this model has no chat template; send `prompt` instead", param="messages")
        try:
            return self._template.render(
                messages=[_turn(message) for message in messages],
                add_generation_prompt=True,
                tools=tools,
                documents=None,
                **self.special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise InvalidRequest(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error

    def encode_messages(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of a conversation; the template has put in the special tokens. Their names in what callers wrote are plain text.

        Raises:
            InvalidRequest: as `render`, or a text holds such a name and can't be written otherwise.
        """
        written = [*texts_in(messages), *texts_in(tools or [])]
        if not self._forged.are_in(written):
            return self._ids(self.render(messages, tools), add_special_tokens=False)
        try:
            mark = self._forged.mark_for(written)

            def broken(text: str) -> str:
                return self._forged.break_names(text, mark)

            return self._forged.encode(self.render(_mapped(messages, broken), _mapped(tools, broken)), mark)
        except ValueError as error:
            raise InvalidRequest(f"messages: {error}", param="messages") from error

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Without the places in the text, which nobody asks for: they cost as much as the ids.
        (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded.ids)
