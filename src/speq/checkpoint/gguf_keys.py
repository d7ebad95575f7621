"""The metadata of a GGUF file's architecture by type: a value of another kind is an error that names its key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from speq.checkpoint.gguf_file import GGUFFile
from speq.errors import SpeqError


class GGUFKeys:
    """The keys that start with the architecture's name, which is left out here."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.architecture = str(file.metadata.get("general.architecture"))

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._file.metadata

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number.

        Raises:
            SpeqError: the key is missing and has no default, or its value is something else or less than ``least``.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._unfit(key, value, f"a whole number from {least} on")
        return value

    def whole_of_all_layers(self, key: str, layers: int, default: int | None = None) -> int:
        """A whole number that the file may give once or for each of its layers.

        Raises:
            SpeqError: as :meth:`whole`; a list of another length; layers that differ.
        """
        value = self._value(key, default)
        if not isinstance(value, list):
            return self.whole(key, default)
        if len(value) != layers:
            raise self._unfit(key, value, f"one number or {layers}, one a layer")
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in value):
            raise self._unfit(key, value, "whole numbers from 1 on")
        if len(set(value)) > 1:
            raise SpeqError(f"{self._file.path}: {self.architecture}.{key} differs per layer, which is not supported")
        return int(value[0])

    def number(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number, a float32 as the shortest decimal that it stands for: 1e-05, not 9.999999747378752e-06.

        Raises:
            SpeqError: as :meth:`whole`.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise self._unfit(key, value, f"a number from {least:g} on")
        return shortest(value) if isinstance(value, float) else value

    def text(self, key: str, default: str) -> str:
        """A string.

        Raises:
            SpeqError: the value is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._unfit(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            SpeqError: the value is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._unfit(key, value, "true or false")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self._file.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise SpeqError(f"{self._file.path} lacks the metadata key {self.architecture}.{key}; convert it again")
        return value

    def _unfit(self, key: str, value: Any, wanted: str) -> SpeqError:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return SpeqError(f"{self._file.path}: {self.architecture}.{key} is {shown}, must be {wanted}")


def shortest(value: float) -> float:
    """The shortest decimal of a float32, as the original config has it."""
    return float(str(np.float32(value)))
