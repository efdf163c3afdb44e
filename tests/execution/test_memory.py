"""How much memory there is: the least of what the system, its groups and the user allow."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from pipeline.execution import memory


def test_it_is_no_more_than_the_machine_has():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.machine_memory() <= physical


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit as Linux has it")
def test_a_limit_of_address_space_counts():
    script = "from pipeline.execution.memory import machine_memory; print(machine_memory())"

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=limit
    )
    assert int(done.stdout) <= 3 * 2**30, done.stderr


@pytest.mark.parametrize(("lines", "files", "expected"), [
    ("0::/jobs/one\n", {"jobs/memory.max": "5000", "jobs/one/memory.max": "max"}, [5000]),
    ("0::/jobs/one\n", {"jobs/one/memory.max": "70", "memory.max": "90"}, [70, 90]),
    ("5:memory:/slurm\n4:cpu:/slurm\n", {"memory/slurm/memory.limit_in_bytes": "1234"}, [1234]),
    ("4:cpu:/slurm\n", {"memory/slurm/memory.limit_in_bytes": "1234"}, []),
    ("0::/gone\n", {}, []),
])  # fmt: skip
def test_limits_of_control_groups_are_read_up_to_the_root(
    tmp_path, monkeypatch, lines, files, expected
):
    groups = tmp_path / "cgroup"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    (tmp_path / "self").write_text(lines)
    monkeypatch.setattr(memory, "_GROUPS", groups)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "self")
    assert list(memory._group_limits()) == expected


def test_no_control_groups_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "nothing")
    assert list(memory._group_limits()) == []
