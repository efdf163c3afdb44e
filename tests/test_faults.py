"""Nothing is lost: whatever is done to a command or to what it wrote, the end is the same.

A few faults of each kind are enough for `make test`; `make faults` goes through all of them and
prints how many there were.
"""

from __future__ import annotations

import pytest
from faults.failures import cut_files, each_operation, fail_each
from faults.forge import Forge
from faults.kills import kill_in_every_phase
from faults.scenes import SCENES
from faults.stage import Stage

pytestmark = pytest.mark.timeout(3600)


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


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_any_moment_of_every_phase_a_resume_ends_as_if_undisturbed(
    stage_of, full, seed, figure, name
):
    count = 100 if full else 1
    found = kill_in_every_phase(stage_of(name), count, seed)
    assert not found.wrong, "\n".join(found.wrong)
    assert min(found.hits[phase] for phase in SCENES[name].phases) >= count
    total = found.hits.total()
    figure(
        f"{name}: SIGKILL, then resumed",
        f"{total} of {total} as undisturbed: {counted(found.hits)}",
    )


@pytest.mark.parametrize("name", SCENES)
def test_any_operation_on_files_may_fail_with_a_clear_error_and_a_resume_completes(
    stage_of, full, seed, figure, name
):
    stage = stage_of(name)
    step = 1 if full else 97
    found = fail_each(stage, each_operation(stage, step, seed % step))
    assert not found.wrong, "\n".join(found.wrong)
    total = found.ends.total()
    assert total > 2
    figure(f"{name}: an operation fails", f"{total} of {total} resumed: {counted(found.ends)}")


@pytest.mark.parametrize("name", SCENES)
def test_files_cut_off_by_a_limit_are_a_clear_error_and_a_resume_completes(
    stage_of, full, figure, name
):
    stage = stage_of(name)
    sizes = range(0, 6000, 100) if full else [700]
    found = fail_each(stage, cut_files(stage, sizes))
    assert not found.wrong, "\n".join(found.wrong)
    assert found.ends["clear error"]
    total = found.ends.total()
    figure(f"{name}: a file is cut off", f"{total} of {total} resumed: {counted(found.ends)}")
