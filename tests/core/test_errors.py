"""Errors show no secret, and come back from other processes as what they are."""

from __future__ import annotations

import inspect
import pickle
import traceback

import pytest

from pipeline.core import errors
from pipeline.core.errors import BadSamplesError, PixsimError, conceal, hide

SECRET = "sEcReT/0f+these=tests"
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PixsimError) and kind is not BadSamplesError
]


@pytest.fixture(autouse=True)
def _nothing_is_concealed(monkeypatch):
    monkeypatch.setattr(errors, "_secrets", frozenset())


def raised(kind, message):
    """Return an error as it is caught, with a traceback."""
    try:
        raise kind(message)
    except kind as error:
        return error


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_and_carries_no_secret(kind):
    error = raised(kind, f"wrong key {SECRET}")
    conceal([SECRET])
    sent = pickle.dumps(error)
    assert SECRET.encode() not in sent
    again = pickle.loads(sent)
    assert type(again) is kind
    for found in (error, again):
        for text in (str(found), repr(found), "".join(traceback.format_exception(found))):
            assert "wrong key ***" in text
            # the line of the test itself is part of a traceback
            assert SECRET not in text


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_two_parents_comes_back_from_a_worker(kind):
    # what dask's workers pickle errors with, once they are imported
    support = pytest.importorskip("tblib.pickling_support")
    error = raised(kind, "no store there; make it")
    support.install(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (kind, str(error), error.args)


def test_an_error_with_rows_comes_back_with_them():
    support = pytest.importorskip("tblib.pickling_support")
    rows = [("train", 1), ("test", 2)]
    error = BadSamplesError(f"2 of 9, see {SECRET}", ["split", "sample"], rows, 2)
    conceal([SECRET])
    for _ in range(2):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.header) == ("2 of 9, see ***", ["split", "sample"])
        assert (again.rows, again.count) == (rows, 2)
        support.install(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_a_standard_one_too_and_says_how_to_exit(kind):
    parents = {parent for parent in kind.__mro__ if parent.__module__ == "builtins"}
    other = {errors.JobInterruptedError: 3, errors.InUseError: 4}
    assert kind.exit_code == other.get(kind, 2 if issubclass(kind, errors.InputError) else 1)
    assert kind in (PixsimError, errors.JobInterruptedError) or parents > {Exception, BaseException}


def test_control_characters_are_spelled_out_and_secrets_hidden():
    conceal([SECRET])
    assert errors.printable(f"a\x1b[31m{SECRET}\n") == "a\\x1b[31m***\\n"


def test_the_longest_secret_is_hidden_first():
    conceal(["longer-secret", "longer-secret-still"])
    assert hide("longer-secret-still, longer-secret") == "***, ***"
