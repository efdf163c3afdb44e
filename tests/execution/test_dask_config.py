"""What pixsim asks of dask counts where the user says nothing, and for as long as it is needed."""

from __future__ import annotations

import copy

import dask
import distributed  # noqa: F401 (its defaults)
import pytest

from pipeline.execution.dask_config import dask_defaults

PAUSE, FAILURES = "distributed.worker.memory.pause", "distributed.scheduler.allowed-failures"


def test_values_take_the_place_of_dasks_defaults_and_go_again():
    before = copy.deepcopy(dask.config.config)
    with dask_defaults({"distributed": {"scheduler": {"allowed-failures": 11}}}):
        assert dask.config.get(FAILURES) == 11
        assert dask.config.get(PAUSE) is False
        assert dask.config.get("distributed.worker.memory.spill") == 0.7
    assert dask.config.config == before


def test_what_comes_first_counts():
    first, second = (
        {"distributed": {"scheduler": {"allowed_failures": n}, "worker": {"memory": {"pause": p}}}}
        for n, p in ((11, 0.5), (12, 0.6))
    )
    with dask_defaults(first, second):
        assert dask.config.get(FAILURES) == 11
        assert dask.config.get(PAUSE) == 0.5


def test_a_section_that_dask_does_not_know_is_put_in_whole():
    with dask_defaults({"jobqueue": {"mine": {"cores": 2, "env": {"A": "b"}}}}):
        assert dask.config.get("jobqueue.mine") == {"cores": 2, "env": {"A": "b"}}


@pytest.mark.parametrize("value", [0.8, 0.9])
def test_what_the_user_gave_stays_also_where_it_is_dasks_own_default(monkeypatch, value):
    assert dask.config.get(PAUSE) == 0.8
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE", str(value))
    with dask.config.set({PAUSE: value}), dask_defaults({"distributed": {"worker": {}}}):
        assert dask.config.get(PAUSE) == value
        assert dask.config.get("distributed.worker.memory.terminate") == 1.0


def test_what_a_program_set_stays():
    with (
        dask.config.set({FAILURES: 0}),
        dask_defaults({"distributed": {"scheduler": {"allowed-failures": 10}}}),
    ):
        assert dask.config.get(FAILURES) == 0
