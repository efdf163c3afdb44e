"""Which splits a job takes where it names none, or some."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.job_settings import make_job
from pipeline.config.splits import FITTED, MEASURED, choose_splits
from pipeline.core.errors import StoreError

MINIMAL = {"images": "some/set.tar"}


@pytest.mark.parametrize(
    ("counts", "asked", "expected"),
    [
        ({"train": 9, "test": 3}, (None, None), ("train", ("test",))),
        ({"test": 3, "val": 3, "train": 9}, (None, None), ("train", ("test",))),
        ({"Train": 9, "Valid": 3}, (None, None), ("Train", ("Valid",))),
        ({"train": 9, "Train": 9, "TEST": 3}, (None, None), ("train", ("TEST",))),
        ({"training": 9, "validation": 3}, (None, None), ("training", ("validation",))),
        ({"train": 9, "val": 3, "valid": 3}, (None, None), ("train", ("valid",))),
        (
            {"seg_test": 3, "seg_train": 9, "seg_pred": 1},
            (None, None),
            ("seg_train", ("seg_test",)),
        ),
        ({"val2017": 3, "train2017": 9}, (None, None), ("train2017", ("val2017",))),
        ({"train_mini": 3, "train": 9}, (None, None), ("train", ("train",))),
        ({"train": 9, "extra": 3}, (None, None), ("train", ("train",))),
        ({"all": 9}, (None, None), ("all", ("all",))),
        ({"all": 9, "none": 0}, (None, None), ("all", ("all",))),
        ({"val": 9}, (None, None), ("val", ("val",))),
        ({"train": 9, "test": 0, "val": 3}, (None, None), ("train", ("val",))),
        ({"a": 9, "b": 3}, (None, ("b",)), ("a", ("b",))),
        ({"train": 9, "test": 3}, ("test", None), ("test", ("test",))),
        ({"train": 9, "val": 3}, ("val", None), ("val", ("val",))),
        ({"train": 9, "test": 3}, ("nowhere", ("x", "y")), ("nowhere", ("x", "y"))),
    ],
)
def test_the_splits_that_are_plainly_meant_are_taken(counts, asked, expected):
    assert choose_splits(counts, *asked) == expected


def test_a_job_that_measures_what_it_fits_takes_one_split():
    counts = {"train": 9, "test": 3}
    for settings in ({"holdout": 0.2}, {"leave_one_out": True}):
        job = make_job(MINIMAL | settings).with_splits(counts)
        assert (job.fit, job.evaluate) == ("train", ("train",))
    job = make_job(MINIMAL | {"holdout": 0.2, "fit": "all"})
    assert job.evaluate == ("all",)


@pytest.mark.parametrize("asked", [None, ("c",)])
def test_where_no_split_is_plainly_meant_those_there_are_are_named(asked):
    with pytest.raises(StoreError, match=r"splits a, b, and none is called 'train'.*--fit a"):
        choose_splits({"a": 1, "b": 1}, None, asked)


@given(st.dictionaries(st.sampled_from(["train", "test", "val", "a", "B"]), st.integers(0, 3)))
def test_what_is_chosen_is_there_and_holds_images(counts):
    try:
        fit, evaluate = choose_splits(counts, None, None)
    except StoreError:
        left = [name for name, count in counts.items() if count] or list(counts)
        assert len(left) != 1
        assert not {name.casefold() for name in left} & set(FITTED)
        return
    assert {fit, *evaluate} <= set(counts)
    if any(counts.values()):
        assert all(counts[name] for name in (fit, *evaluate))
    assert evaluate == (fit,) or evaluate[0].casefold() in MEASURED


def test_a_chosen_job_is_the_job_that_names_the_same():
    chosen = make_job(MINIMAL | {"neighbours": {"k": 2}}).with_splits({"train": 9, "test": 3})
    named = make_job(MINIMAL | {"neighbours": {"k": 2}, "fit": "train", "evaluate": "test"})
    assert chosen.model_dump() == named.model_dump()
    assert chosen.decides() == named.with_splits({}).decides()
    assert chosen.named_cluster is None
