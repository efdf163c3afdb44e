"""Sets of numbers as runs: what is known of 100,000 partitions in a few pairs of integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Ranges = tuple[tuple[int, int], ...]
"""A set of numbers: (first, one after the last) of its runs, in order, none touching another."""

_END = 2**63


def joined(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of sets of numbers; runs may overlap."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(run for runs in sets for run in runs):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        elif start < stop:
            found.append((start, stop))
    return tuple(found)


def without(numbers: Ranges, other: Ranges) -> Ranges:
    """Return the numbers that are not in the other set."""
    found: list[tuple[int, int]] = []
    rest = iter((*other, (_END, _END)))
    first, last = next(rest)
    for begin, stop in numbers:
        start = begin
        while last <= start:
            first, last = next(rest)
        while first < stop:
            found.append((start, first))
            start = last
            if last >= stop:
                break
            first, last = next(rest)
        found.append((start, stop))
    return tuple((start, stop) for start, stop in found if start < stop)


def cut(numbers: Ranges, first: int, last: int) -> Ranges:
    """Return the numbers from place `first` on to before place `last`, in their order."""
    found, place = [], 0
    for start, stop in numbers:
        low, high = max(first - place, 0), min(last - place, stop - start)
        if low < high:
            found.append((start + low, start + high))
        place += stop - start
    return tuple(found)


def size_of(numbers: Ranges) -> int:
    """Return how many numbers there are."""
    return sum(stop - start for start, stop in numbers)


def each(numbers: Ranges) -> Iterator[int]:
    """Yield the numbers in their order."""
    return (number for start, stop in numbers for number in range(start, stop))
