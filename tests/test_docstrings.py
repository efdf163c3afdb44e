"""The examples in the docstrings of public functions give what they show."""

from __future__ import annotations

import doctest
import inspect
from types import ModuleType

import pytest

import pipeline
from pipeline.report import plots

# what a user calls first has an example
WITH_EXAMPLES = {
    "class_medians", "distances", "from_arrays", "knn_graph", "make_job",
    "neighbours", "open_images", "pairs_within", "predict", "prototypes", "run_job", "vote",
}  # fmt: skip


def found() -> dict[str, doctest.DocTest]:
    """Return the examples of every public name, those of the methods of a class among them."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    public = {name: getattr(pipeline, name) for name in pipeline.__all__}
    public |= {f"plots.{name}": getattr(plots, name) for name in plots.__all__}
    return {
        f"{name}{test.name.removeprefix(value.__name__)}": test
        for name, value in public.items()
        if inspect.isfunction(value) or inspect.isclass(value)
        for test in finder.find(value, value.__name__, globs={**vars(_home(value))})
        if test.examples
    }


def _home(value: object) -> ModuleType:
    module = inspect.getmodule(inspect.unwrap(value))  # type: ignore[arg-type]
    assert module is not None
    return module


EXAMPLES = found()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples: each begins with an image set that the first one makes."""
    return tmp_path_factory.mktemp("examples")


def test_what_is_called_first_has_an_example():
    assert {*EXAMPLES} >= WITH_EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_shows(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    said: list[str] = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS
        | doctest.NORMALIZE_WHITESPACE
        | doctest.IGNORE_EXCEPTION_DETAIL
    )
    runner.run(EXAMPLES[name], out=said.append)
    assert not runner.failures, "".join(said)
