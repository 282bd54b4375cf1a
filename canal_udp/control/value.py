"""JSON objects that someone else wrote into a store: bounded, keys in any case, every field checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from canal_udp.errors import ConfigError
from canal_udp.net import printable

TEXT_MAX_BYTES = 64 * 1024
T = TypeVar("T")


class Fields:
    """One JSON object; every getter raises ConfigError naming the field.

    As Go's encoding/json: keys that differ in case only are one key and the last counts; null is like absent.
    """

    def __init__(self, pairs: dict[str, object], source: str) -> None:
        self._pairs = {key.lower(): value for key, value in pairs.items() if value is not None}
        self.source = source

    def error(self, problem: str, field: str = "") -> ConfigError:
        return ConfigError(problem, source=self.source, field=field)

    def text(self, field: str) -> str | None:
        value = self._pairs.get(field.lower())
        if value is not None and not isinstance(value, str):
            raise self.error(f"must be a string, not {_kind(value)}", field)
        return value

    def integer(self, field: str, low: int, high: int) -> int | None:
        value = self._pairs.get(field.lower())
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"must be a whole number, not {_kind(value)}", field)
        if not low <= value <= high:
            raise self.error(f"must be {low} to {high}, not {value}", field)
        return value

    def boolean(self, field: str, default: bool) -> bool:
        value = self._pairs.get(field.lower(), default)
        if not isinstance(value, bool):
            raise self.error(f"must be true or false, not {_kind(value)}", field)
        return value

    def object(self, field: str) -> Fields | None:
        value = self._pairs.get(field.lower())
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(f"must be an object, not {_kind(value)}", field)
        return Fields(value, self.source)

    def parsed(self, field: str, parse: Callable[[str], T]) -> T | None:
        """A string field through a parser that raises ValueError."""
        text = self.text(field)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(printable(str(error), 200), field) from None


def read_object(text: str | bytes, source: str) -> Fields:
    """Decode one JSON object of at most TEXT_MAX_BYTES; ConfigError says what is wrong."""
    if len(text) > TEXT_MAX_BYTES:
        raise ConfigError(f"longer than {TEXT_MAX_BYTES} bytes", source=source)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {printable(str(error), 200)}", source=source) from None
    if not isinstance(value, dict):
        raise ConfigError(f"must be a JSON object, not {_kind(value)}", source=source)
    return Fields(value, source)


def _kind(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case None:
            return "null"
        case dict():
            return "an object"
    return "a list"
