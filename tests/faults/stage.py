"""A scene played with faults, and what must be there in the end: what an undisturbed one leaves."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pipeline
from faults.forge import KILLED, Fault, Forge, Order, Outcome
from faults.scenes import Scene
from pipeline.cli import main
from pipeline.core.errors import StoreError
from pipeline.core.paths import locate
from pipeline.jobs.job import EFFORT
from pipeline.storage.audit_files import PAGE_FILE
from pipeline.storage.blobs import read_bytes
from pipeline.storage.folders import files_below
from pipeline.storage.locks import is_lock
from pipeline.storage.run_files import REPORT_FILE

_VOLATILE = ("finished", "checksum", *EFFORT)
_PAGES = (REPORT_FILE, PAGE_FILE)
_number = itertools.count()


@dataclass(frozen=True)
class Remains:
    """What lies in a folder: digests, taken by reading everything, and the files with their bytes.

    Of manifests neither times nor the place of the folder are compared.
    """

    digests: Mapping[str, Any]
    files: Mapping[str, bytes]

    def difference(self, other: Remains) -> str:
        """Say where two differ; nothing where they do not."""
        if self.digests != other.digests:
            return f"digests {self.digests}, expected {other.digests}"
        names = sorted(set(self.files) ^ set(other.files))
        if names:
            return f"files that are not in both: {names[:9]}"
        changed = [name for name, data in self.files.items() if other.files[name] != data]
        return f"other bytes in {changed[:9]}" if changed else ""


def take_remains(scene: Scene) -> Remains:
    """Read everything that a scene made in the working directory."""
    digests, files = {}, {}
    for name in scene.results:
        digests[name] = pipeline.digest(name, scene.options)
        path = locate(name, scene.options)
        for file in files_below(path):
            if scene.at and is_lock(file):
                continue  # left in a bucket by a process killed while it gave its lock back
            data = read_bytes(path / file)
            files[f"{name}/{file}"] = _lasting(file, data)
    return Remains(digests, files)


def _lasting(file: str, data: bytes) -> bytes:
    """Return what is the same whenever and wherever a file was written."""
    if file in _PAGES:
        return b""  # it says when, and how long it took
    if not file.endswith(".json"):
        return data
    content = json.loads(data.decode().replace(str(Path.cwd()), ""))
    kept = {key: value for key, value in content.items() if key not in _VOLATILE}
    for page in _PAGES:
        kept.get("files", {}).pop(page, None)
    return json.dumps(kept, sort_keys=True).encode()


def glance(scene: Scene) -> dict[str, Any]:
    """Return what a reader is shown of each result: its digests, or None where it is refused."""
    found: dict[str, Any] = {}
    for name in scene.results:
        try:
            found[name] = pipeline.digest(name, scene.options)
        except StoreError:
            found[name] = None
    return found


def resume(scene: Scene) -> tuple[dict[str, Any], int, Remains | None]:
    """Glance, run the command again, and take what it leaves; nothing where it fails."""
    shown = glance(scene)
    code = main(scene.words)
    return shown, code, None if code else take_remains(scene)


class Stage:
    """A scene, ready to be played again and again.

    Attributes
    ----------
    scene
        Which.
    expected
        What an undisturbed command leaves.
    phases
        Its phases with their seconds.
    operations
        Its operations below the folder; see `Outcome`.
    """

    def __init__(self, scene: Scene, forge: Forge, folder: Path) -> None:
        self.scene, self.forge, self._folder = scene, forge, folder
        scene.prepare(folder / "before")
        place = self._place()
        self._before = self.call(place, partial(glance, scene))
        done = self._run(place)
        self.phases, self.operations = dict(done.phases), done.operations
        self.expected: Remains = self.call(place, partial(take_remains, scene))

    def play(self, *faults: Fault) -> tuple[list[Outcome], str]:
        """Run the command with each fault in turn, then without any.

        Returns what became of the disturbed ones, and what is wrong: an error that is not clear, a
        reader who was shown what is neither old nor new, or something else in the end than an
        undisturbed command leaves. Nothing where nothing is.
        """
        scene, place = self.scene, self._place()
        outcomes = [self.forge.run(place, *scene.words, fault=fault) for fault in faults]
        wrong = [
            f"ended with {found.code} and said {found.text}"
            for found in outcomes
            if not found.is_clear and found.code != KILLED
        ]
        return outcomes, "; ".join([*wrong, *self._complaints(place)])

    def play_at_once(self, runners: int) -> tuple[list[Outcome], str]:
        """Run the command in several processes at once, then once more; see `play`."""
        place = self._place()
        started = [self.forge.start(Order(place, self.scene.words)) for _ in range(runners)]
        outcomes = [pending.outcome() for pending in started]
        return outcomes, "; ".join(self._complaints(place))

    def _complaints(self, place: Path) -> list[str]:
        """Resume what lies in a folder, say what is wrong with it, and remove it."""
        done = self.forge.run(place, function=partial(resume, self.scene))
        if done.code:
            return [f"cannot be resumed or read: {done.text}"]
        shown, code, left = done.value
        wrong = [
            f"a reader of {name} was shown {digests}"
            for name, digests in shown.items()
            if digests not in (self._before[name], self.expected.digests[name])
        ]
        if left is None:
            wrong.append(f"resumed, ended with {code} and said {done.text}")
        elif difference := left.difference(self.expected):
            wrong.append(difference)
        shutil.rmtree(place)
        return wrong

    def operations_in(self, phases: Sequence[str]) -> list[int]:
        """Return the numbers of the operations of some phases."""
        return [at for at, (phase, _, _) in enumerate(self.operations) if phase in phases]

    def moment(self, phase: str, rng: random.Random) -> Fault:
        """Return a kill at a random moment of a phase: at some time, or at some operation."""
        numbers = self.operations_in([phase])
        if numbers and rng.random() < 0.5:
            return Fault(rng.choice(numbers), below=self.scene.watched)
        return Fault(phase=phase, seconds=rng.uniform(0, self.phases[phase]))

    def finished(self) -> Path:
        """Return a new folder with what the command leaves."""
        place = self._place()
        self._run(place)
        return place

    def call(self, place: Path, function: Callable[[], Any]) -> Any:
        """Return what a function returns, called in a folder, in a process of its own."""
        found = self.forge.run(place, function=function)
        if found.code:
            raise AssertionError(f"{self.scene.name}: {function} failed: {found.text}")
        return found.value

    def _run(self, place: Path) -> Outcome:
        done = self.forge.run(place, *self.scene.words, fault=Fault(below=self.scene.watched))
        if done.code:
            raise AssertionError(f"{self.scene.name}: {done.text}")
        return done

    def _place(self) -> Path:
        """Return a new folder with what the command finds."""
        place = self._folder / str(next(_number))
        shutil.copytree(self._folder / "before", place)
        return place
