"""A real Slurm on this machine: the same job there as on threads, with the user's own commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_for_tests import CannotInstallError, Slurm, slurm

import pipeline

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflows" / "slurm"
BIN = Path(sys.executable).parent

# small enough that the jobs of a test run side by side on one small machine
JOB_OPTIONS = ("--time=10", "--mem=1G", "--cpus-per-task=1")
DIGITS = ROOT / "workflows" / "digits.yml"
# so many partitions that a job can be stopped among them
MANY = ("images.shard=16", "evaluate=[train,test]", "cluster.memory=1 GB")


@pytest.fixture(scope="module")
def cluster():
    """A Slurm whose jobs find `pixsim`, and dask's workers on loopback."""
    try:
        with slurm() as found:
            environment = found.environment | {
                "PATH": f"{BIN}:{found.environment['PATH']}",
                "DASK_JOBQUEUE__SLURM__INTERFACE": "lo",
            }
            yield Slurm(found.folder, environment)
    except CannotInstallError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def at_home(cluster, tmp_path) -> Slurm:
    """The same, for a test whose data are in a folder of its own."""
    environment = {key: value for key, value in cluster.environment.items() if key != "PIXSIM_DATA"}
    return Slurm(cluster.folder, environment | {"PIXSIM_DATA": str(tmp_path / "data")})


def digest_of(text: str) -> str:
    [found] = re.findall(r"^digest sha256:(\w{64})$", text, re.MULTILINE)
    return found


def on_threads(job: Path, folder: Path, *overrides: str) -> str:
    """Return the digest of a job that ran in this process."""
    settings = pipeline.load_job(
        job, [*overrides, f"images.store={folder / 'own.zarr'}"], folder / "own"
    )
    return pipeline.describe(pipeline.run_job(settings).path)["digests"]["run"]


@pytest.mark.slow
def test_the_job_ends_with_the_digest_that_it_has_on_threads(at_home, tmp_path):
    real = "PIXSIM_DATASETS" in os.environ
    job = ROOT / "workflows" / "fashion_mnist.yml" if real else DIGITS
    command = ["pixsim", "run", job, "--cluster", "slurm", "--output", tmp_path / "run"]
    changes = ["--set", "cluster.memory=1 GB", f"images.shard={5000 if real else 100}"]
    done = subprocess.run(
        [str(word) for word in [*command, *changes]],
        cwd=tmp_path,
        env=at_home.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + at_home.logs()
    assert digest_of(done.stdout) == on_threads(job, tmp_path)
    workers = [job for job in at_home.finished("dask-worker", 2) if job["WorkDir"] == str(tmp_path)]
    assert len(workers) == 2, done.stderr + at_home.logs()
    assert all(worker["NodeCnt"] == "1" for worker in workers)  # it did start
    logs = [(tmp_path / f"slurm-{worker['JobId']}.out").read_text() for worker in workers]
    schedulers = re.findall(r"Registered to: +(\w+)://", "".join(logs))
    assert set(schedulers) == {"tls"}, logs  # one may come when the work is done
    assert pipeline.describe(tmp_path / "run")["executor"] == "2 dask workers on Slurm"


@dataclass(frozen=True)
class Batch:
    """A job of many partitions, submitted with the script of the project."""

    home: Slurm
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def submit(self, cluster: str) -> int:
        words = ["run", DIGITS, "--output", self.run, "--cluster", cluster, "--set", *MANY]
        return self.home.submit(
            SCRIPTS / "pixsim.sbatch", *JOB_OPTIONS, f"--chdir={self.folder}", arguments=words
        )

    def log(self, number: int) -> str:
        return (self.folder / f"pixsim-{number}.log").read_text()

    def parts(self) -> int:
        return len(list(self.run.glob("predictions/part-*.parquet")))

    def signal(self, number: int, name: str) -> None:
        """Send a signal to the script, and to it alone, while the job writes its parts."""
        before, until = self.parts(), time.monotonic() + 90
        while self.parts() == before:
            assert time.monotonic() < until, f"{self.home.job(number)}{self.home.logs()}"
            time.sleep(0.02)
        self.home.ask("scancel", "--batch", f"--signal={name}", str(number))

    def wait(self, number: int, *states: str) -> dict[str, str]:
        found = self.home.wait_for(number, "COMPLETED", "FAILED", "TIMEOUT", *states)
        whole = (self.run / "manifest.json").exists()
        assert whole == (found["JobState"] == "COMPLETED"), self.log(number)
        return found


@pytest.mark.slow
def test_a_batch_job_that_is_stopped_goes_on(at_home, tmp_path):
    batch = Batch(at_home, tmp_path)

    # cancelled: it stays so, and takes its workers along
    first = batch.submit("slurm")
    batch.signal(first, "TERM")
    found = batch.wait(first)
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "3:0"), batch.log(first)
    assert found["Restarts"] == "0"
    assert "run the same command again" in batch.log(first)
    at_home.wait_for_none("dask-worker")

    # near the end of its time, it goes back into the queue and on from there
    kept = batch.parts()
    second = batch.submit("threads")
    batch.signal(second, "USR1")
    found = batch.wait(second, "PENDING")
    assert (found["JobState"], found["Restarts"]) == ("PENDING", "1"), batch.log(second)
    assert 0 < kept < batch.parts()
    # Slurm waits two minutes; in the second in which it ended the job, it refuses to start it
    at_home.ask("scontrol", "update", f"JobId={second}", "StartTime=now+2")
    found = batch.wait(second)
    assert found["ExitCode"] == "0:0", batch.log(second)
    assert digest_of(batch.log(second)) == on_threads(DIGITS, tmp_path, MANY[1])


@pytest.mark.slow
def test_an_ingest_is_planned_shared_and_finished(at_home, tmp_path):
    environment = at_home.environment | {
        "SHARES": "2",
        "SBATCH_MEM_PER_NODE": "1G",
        "SBATCH_TIMELIMIT": "10",
    }
    words = ["digits", "--output", "digits.zarr", "--shard", "300"]
    done = subprocess.run(
        [SCRIPTS / "ingest.sh", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    numbers = re.fullmatch(r"plan (\d+), shares (\d+), finish (\d+)\n", done.stdout)
    assert numbers, done.stderr
    found = at_home.wait_for(int(numbers[3]), "COMPLETED", "FAILED", "CANCELLED")
    assert found["JobState"] == "COMPLETED", at_home.logs()
    shares = [job for job in at_home.finished("pixsim-share", 2) if job["ArrayJobId"] == numbers[2]]
    assert {job["ArrayTaskId"] for job in shares} == {"0", "1"}
    for share in range(2):  # of six partitions
        log = (tmp_path / f"pixsim-share-{numbers[2]}-{share}.log").read_text()
        assert "ingest: 3 partitions in" in log
    stored = pipeline.describe(tmp_path / "digits.zarr")
    assert stored["digest"] == pipeline.describe(pipeline.ingest("digits"))["digest"]


def test_scripts_are_ones_that_bash_understands():
    for script in (SCRIPTS / "pixsim.sbatch", SCRIPTS / "ingest.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
