# Types of `_arguments.pyx`: argument checks, for Python callers.

from collections.abc import Iterable
from typing import Any, TypeVar

__all__ = [
    "finite_number",
    "one_of",
    "positive_seconds",
    "share_of_one",
    "want_bool",
    "want_callable",
    "want_text",
    "whole_number",
]

_T = TypeVar("_T")

def whole_number(
    name: str, value: object, least: int = 1, most: int = ..., *, unit: str = "", optional: bool = False
) -> Any: ...
def positive_seconds(name: str, value: object, *, optional: bool = False) -> float: ...
def finite_number(
    name: str, value: object, allowed: str = "a finite number", *, least: float = ..., most: float = ...
) -> float: ...
def share_of_one(name: str, value: object, most: float = 1.0) -> float: ...
def want_callable(name: str, value: _T, *, optional: bool = False) -> _T: ...
def want_text(name: str, value: _T, *, optional: bool = False) -> _T: ...
def want_bool(name: str, value: object) -> bool: ...
def one_of(name: str, value: object, choices: Iterable[str]) -> str: ...
