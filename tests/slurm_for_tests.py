"""Slurm on this machine, for tests: Debian's packages, one node, its own daemons on loopback."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PACKAGE = "slurm-wlm"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS = 60
# Debian asks this program before it starts the daemon of a package that was just installed
POLICY = Path("/usr/sbin/policy-rc.d")

# More CPUs than the machine may have: a client and its workers run side by side.
CPUS = 8

CONFIG = """\
ClusterName=pixsim-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class CannotInstallError(Exception):
    """Slurm is not here and cannot be installed; the message is a reason to skip a test."""


def install() -> None:
    """Install Slurm where it is missing; nothing of it is started.

    Raises
    ------
    CannotInstallError
        Where it takes another system, another user, or a network.
    """
    if os.geteuid() != 0:
        raise CannotInstallError("needs root, to install Slurm and to run its daemons")
    with Path(tempfile.gettempdir(), "pixsim-install-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in other processes want it too
        if _missing():
            _install_package()


def _missing() -> list[str]:
    return [name for name in NEEDED if shutil.which(name, path=SYSTEM_PATH) is None]


def _install_package() -> None:
    if shutil.which("apt-get", path=SYSTEM_PATH) is None:
        raise CannotInstallError(f"needs Slurm, or apt-get to install {PACKAGE}")
    with _no_daemon_starts():
        problem = _apt_get("install", "--no-install-recommends", PACKAGE)
        if problem and not (problem := _apt_get("update")):
            problem = _apt_get("install", "--no-install-recommends", PACKAGE)
    if problem:
        raise CannotInstallError(f"needs Slurm, but apt-get failed: {problem}")
    if missing := _missing():
        raise CannotInstallError(f"{PACKAGE} of this system is without {', '.join(missing)}")


def _apt_get(*words: str) -> str:
    """Run apt-get and return why it failed, or nothing."""
    environment = {"PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    proxies = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    command = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=60", *words]
    try:
        done = subprocess.run(
            command, env=environment | proxies, capture_output=True, text=True, timeout=150
        )
    except subprocess.TimeoutExpired:
        return f"'{' '.join(words)}' took more than 150 s"
    return "" if done.returncode == 0 else " ".join(done.stderr.split()[-40:])


@contextmanager
def _no_daemon_starts():
    """Keep the daemons of packages from being started while they are installed."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes
    ----------
    folder
        Its configuration, state and logs.
    environment
        What a process needs for its `sbatch` to reach this Slurm and no other.
    """

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, arguments=()) -> int:
        """Submit a script and return the number of its job."""
        words = [str(word) for word in (*options, script, *arguments)]
        return int(self.ask("sbatch", "--parsable", *words))

    def job(self, number: int) -> dict[str, str]:
        """Return what Slurm knows of a job: `JobState`, `ExitCode`, `Restarts`, ..."""
        text = self.ask("scontrol", "--oneliner", "show", "job", str(number))
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_for(self, number: int, *states: str, seconds: float = 90) -> dict[str, str]:
        """Wait until a job is in one of the states, and return what Slurm knows of it then."""
        until = time.monotonic() + seconds
        while (found := self.job(number))["JobState"] not in states:
            assert time.monotonic() < until, f"job {number}: {found}\n{self.logs()}"
            time.sleep(0.1)
        return found

    def wait_for_none(self, name: str, seconds: float = 30) -> None:
        """Wait until no job of a name is in the queue."""
        until = time.monotonic() + seconds
        while left := self.ask("squeue", "--noheader", f"--name={name}"):
            assert time.monotonic() < until, f"{left}\n{self.logs()}"
            time.sleep(0.1)

    def finished(self, name: str, count: int, seconds: float = 30) -> list[dict[str, str]]:
        """Wait until so many jobs of a name have ended; return Slurm's own record of each."""
        until = time.monotonic() + seconds
        path = self.folder / "finished.log"
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
            found = [job for job in found if job["Name"] == name]
            if len(found) >= count:
                return found
            assert time.monotonic() < until, f"{len(found)} of {count} {name}: {self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        ends = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:])
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(["", *ends])


@contextmanager
def slurm():
    """Start Slurm's daemons on free ports; yield it as a `Slurm`, stop it and all of its jobs.

    Raises
    ------
    CannotInstallError
        See `install`.
    """
    install()
    # short, since the paths of sockets in it may have no more than 107 characters
    folder = Path(tempfile.mkdtemp(prefix="pixsim-slurm-", dir="/tmp"))
    folder.chmod(0o711)  # Munge wants its socket to be within reach of every user
    system = {"PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}"}
    found = Slurm(folder, os.environ | system | {"SLURM_CONF": str(folder / "slurm.conf")})
    _write_config(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_end_what_is_left, folder)
        stack.enter_context(_daemon(found, "munged", *_munge_options(folder)))
        _until(found, (folder / "munge.socket").is_socket, "munged")
        stack.enter_context(_daemon(found, "slurmctld", "-D"))
        stack.enter_context(_daemon(found, "slurmd", "-D"))
        _until(found, lambda: _node_state(found) == "idle", "the node")
        stack.callback(_cancel_all, found)
        yield found


def _write_config(folder: Path) -> None:
    ports = []
    with ExitStack() as stack:  # both at once, else they might be one
        for _ in range(2):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
            cpus=CPUS,
            megabytes=psutil.virtual_memory().total // 2**20,
        )
    )


def _munge_options(folder: Path) -> list[str]:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    paths = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    return ["--foreground", "--force", "--num-threads=2", *paths]


@contextmanager
def _daemon(found: Slurm, name: str, *options: str):
    """Run a daemon as a child of this process until the end."""
    with (found.folder / f"{name}.out.log").open("wb") as output:
        process = subprocess.Popen(
            [name, *options],
            executable=shutil.which(name, path=SYSTEM_PATH),
            env=found.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(found: Slurm, is_so, what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while not is_so():
        assert time.monotonic() < until, f"{what} did not start: {found.logs()}"
        time.sleep(0.05)


def _node_state(found: Slurm) -> str:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%t"],
        env=found.environment,
        capture_output=True,
        text=True,
    )
    return asked.stdout.strip()


def _cancel_all(found: Slurm) -> None:
    """Cancel every job and wait until the node has let go of it."""
    with suppress(AssertionError, subprocess.TimeoutExpired):
        numbers = found.ask("squeue", "--noheader", "--format=%A").split()
        if not numbers:
            return
        found.ask("scancel", *set(numbers))
        found.ask("scancel", "--signal=KILL", "--full", *set(numbers))
        until = time.monotonic() + 10
        while found.ask("squeue", "--noheader") and time.monotonic() < until:
            time.sleep(0.1)


def _end_what_is_left(folder: Path) -> None:
    """Kill what Slurm started and could not stop: it has this Slurm's configuration."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = process.environ().get("SLURM_CONF") == str(folder / "slurm.conf")
            if mine and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
