"""Tries of one driver, two at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_AT_ONCE = 2


def in_turns(attempt: Callable[[T], None], items: Iterable[T]) -> None:
    """Call `attempt` for every item; they wait for processes, so threads will do."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(attempt, items):
            pass
