"""Nothing is lost: whatever is done to a command or to what it wrote, the end is the same.

A few faults of each kind are enough for `make test`; `make faults` goes through all of them and
prints how many there were.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from faults.failures import LASTING, PASSING, cut_files, each_operation, fail_each
from faults.forge import Forge
from faults.kills import kill_anywhere, kill_in_every_phase
from faults.races import race
from faults.scenes import LOCAL, REMOTE
from faults.stage import Stage
from faults.states import Disturbed
from faults.verdicts import judge_damages
from faults.workers import (
    CHAOS,
    SIGKILL,
    chaos,
    killing,
    make_source,
    time_undisturbed,
    work,
    work_while_workers_die,
)
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

pytestmark = pytest.mark.timeout(4 * 3600)
SCENES = LOCAL | REMOTE
# the others go through the same ways of failing
HERE = [pytest.param(name, marks=[pytest.mark.slow] * (name == "audit")) for name in LOCAL]


@pytest.fixture(scope="module")
def forge():
    with Forge() as made:
        yield made


@pytest.fixture(scope="module")
def stage_of(forge, tmp_path_factory):
    """Return the stage of a scene by its name; each is set once."""
    made = {}

    def stage(name):
        if name not in made:
            made[name] = Stage(SCENES[name], forge, tmp_path_factory.mktemp(name))
        return made[name]

    return stage


@pytest.fixture(scope="module")
def full(request):
    return request.config.getoption("--faults") == "full"


@pytest.fixture(scope="module")
def seed(request):
    return request.config.getoption("--faults-seed")


def counted(counts):
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


@pytest.mark.parametrize("name", HERE)
def test_killed_at_any_moment_of_every_phase_a_resume_ends_as_if_undisturbed(
    stage_of, full, seed, figure, name
):
    count = 100 if full else 1
    found = kill_in_every_phase(stage_of(name), count, seed)
    assert not found.wrong, "\n".join(found.wrong)
    assert min(found.hits[phase] for phase in SCENES[name].phases) >= count
    total = found.hits.total()
    figure(f"{name}: SIGKILL, resumed", f"{total:,} as undisturbed: {counted(found.hits)}")


@pytest.mark.slow
@pytest.mark.parametrize("name", REMOTE)
def test_killed_while_it_writes_to_an_object_store_a_resume_ends_as_if_undisturbed(
    stage_of, full, seed, figure, name
):
    stage = stage_of(name)
    found = kill_anywhere(stage, 200 if full else 2, seed)
    assert not found.wrong, "\n".join(found.wrong)
    total = found.hits.total()
    assert total
    figure(f"{name}: SIGKILL, resumed", f"{total:,} as undisturbed: {counted(found.hits)}")


@pytest.mark.parametrize("name", HERE)
def test_any_operation_on_files_may_fail_with_a_clear_error_and_a_resume_completes(
    stage_of, full, seed, figure, name
):
    stage = stage_of(name)
    step = 1 if full else 401
    found = fail_each(stage, each_operation(stage, step, seed % step))
    assert not found.wrong, "\n".join(found.wrong)
    assert found.ends["clear error"]
    figure(f"{name}: an operation fails", f"{found.ends.total():,} resumed: {counted(found.ends)}")


@pytest.mark.parametrize("name", HERE)
def test_files_cut_off_by_a_limit_are_a_clear_error_and_a_resume_completes(
    stage_of, full, figure, name
):
    stage = stage_of(name)
    found = fail_each(stage, cut_files(stage, range(0, 6000, 100) if full else [700]))
    assert not found.wrong, "\n".join(found.wrong)
    assert found.ends["clear error"]
    figure(f"{name}: files are cut off", f"{found.ends.total():,} resumed: {counted(found.ends)}")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "remote append")) for name in REMOTE
])  # fmt: skip
def test_a_request_that_fails_once_is_asked_again_and_nothing_is_seen_of_it(
    stage_of, full, seed, figure, name
):
    stage = stage_of(name)
    step = 5 if full else 401
    found = fail_each(stage, each_operation(stage, step, seed % step, PASSING))
    assert not found.wrong, "\n".join(found.wrong)
    assert not found.errors, "\n".join(found.errors)
    assert found.ends["completed"] == found.ends.total() > 0
    figure(f"{name}: a request fails once", f"{found.ends.total():,} completed")


@pytest.mark.parametrize("name", REMOTE)
def test_an_object_store_that_goes_away_is_a_clear_error_and_a_resume_completes(
    stage_of, full, seed, figure, name
):
    stage = stage_of(name)
    step = 5 if full else 401
    found = fail_each(stage, each_operation(stage, step, seed % step, LASTING))
    assert not found.wrong, "\n".join(found.wrong)
    assert found.ends["clear error"]
    figure(f"{name}: the store goes away", f"{found.ends.total():,} resumed: {counted(found.ends)}")


@pytest.mark.parametrize("name", HERE)
def test_of_several_processes_in_one_folder_one_wins_and_the_others_say_who_holds_it(
    stage_of, full, figure, name
):
    found = race(stage_of(name), runners=4, times=25 if full else 1)
    assert not found.wrong, "\n".join(found.wrong)
    figure(f"{name}: four at once", f"{found.won:,} ended well, {found.turned_away:,} turned away")


def test_every_damage_is_found_and_repaired_and_nothing_reads_as_if_it_were_not_there(
    stage_of, full, seed, figure
):
    found = judge_damages(stage_of("run"), 300 if full else 6, seed)
    assert not found.missed, "\n".join(found.missed)
    assert not found.believed, "\n".join(found.believed)
    assert not found.unrepaired, "\n".join(found.unrepaired)
    total = found.done.total()
    figure(
        "damage to stores and runs", f"{total} of {total} found, 0 believed: {counted(found.done)}"
    )


@pytest.mark.slow
def test_jobs_whose_workers_are_killed_end_with_the_same_digests(full, seed, figure, tmp_path):
    partitions, shard = (300, 10) if full else (24, 4)
    source = make_source(partitions, shard)
    expected = work(tmp_path / "undisturbed", source, shard, "threads")
    # long enough to come up and do something also on a busy machine, too short to do it all
    seconds = max(2.0, time_undisturbed(tmp_path / "processes", source, shard) / 3) if full else 0.0
    rng = random.Random(seed)
    for number in range(4 if full else 1):
        for way in (*CHAOS, SIGKILL) if full else (SIGKILL,):
            folder = tmp_path / f"{way} {number}"
            folder.mkdir()
            dying = (
                killing(folder, rng, 6 if full else 1) if way == SIGKILL else chaos(way, seconds)
            )
            found = work_while_workers_die(folder, source, shard, dying)
            assert found.digests == expected
            assert found.workers > 0 or way != SIGKILL
            what = f"{found.workers} workers died, {found.resumed} times resumed, same digests"
            figure(f"workers killed by {way}", what)


@pytest.mark.slow
def test_any_course_of_events_keeps_what_was_finished(forge, full, figure, tmp_path):
    events = Counter()
    run_state_machine_as_test(
        lambda: Disturbed(forge, tmp_path, events),
        settings=settings(
            max_examples=80 if full else 2,
            stateful_step_count=25 if full else 8,
            deadline=None,
            derandomize=not full,
            suppress_health_check=list(HealthCheck),
        ),
    )
    figure("any course of events", counted(events))
