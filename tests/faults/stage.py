"""A scene played with faults, and what must be there in the end: what an undisturbed one leaves."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from faults.forge import KILLED, Fault, Forge, Outcome
from faults.scenes import Scene
from pipeline.cli import main
from pipeline.errors import StoreError

_VOLATILE = ("finished", "seconds")
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


@dataclass(frozen=True)
class TakeRemains:
    """Reads everything that a scene made."""

    folder: Path
    results: tuple[str, ...]

    def __call__(self) -> Remains:
        digests = {name: pipeline.digest(self.folder / name) for name in self.results}
        files = {}
        for name in self.results:
            for path in sorted((self.folder / name).rglob("*")):
                if path.is_file():
                    key = path.relative_to(self.folder).as_posix()
                    files[key] = self._lasting(path) if key.endswith(".json") else path.read_bytes()
        return Remains(digests, files)

    def _lasting(self, path: Path) -> bytes:
        content = json.loads(path.read_text().replace(str(self.folder), ""))
        kept = {key: value for key, value in content.items() if key not in _VOLATILE}
        return json.dumps(kept, sort_keys=True).encode()


@dataclass(frozen=True)
class Glance:
    """What a reader is shown of each result: its digests, or None where it is refused."""

    folder: Path
    results: tuple[str, ...]

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.results:
            try:
                found[name] = pipeline.digest(self.folder / name)
            except StoreError:
                found[name] = None
        return found


@dataclass(frozen=True)
class Resume:
    """A glance, the command again, and what it leaves; nothing where it fails."""

    folder: Path
    words: tuple[str, ...]
    results: tuple[str, ...]

    def __call__(self) -> tuple[dict[str, Any], int, Remains | None]:
        shown = Glance(self.folder, self.results)()
        code = main(self.words)
        return shown, code, None if code else TakeRemains(self.folder, self.results)()


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
        self._before = self._read(Glance(place, scene.results))
        done = forge.run(place, *scene.words)
        if done.code:
            raise AssertionError(f"{scene.name}: {done.text}")
        self.phases, self.operations = dict(done.phases), done.operations
        self.expected: Remains = self._read(TakeRemains(place, scene.results))

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
        done = self.forge.run(place, function=Resume(place, scene.words, scene.results))
        if done.code:
            return outcomes, "; ".join([*wrong, f"cannot be resumed or read: {done.text}"])
        shown, code, left = done.value
        for name, digests in shown.items():
            if digests not in (self._before[name], self.expected.digests[name]):
                wrong.append(f"a reader of {name} was shown {digests}")
        if left is None:
            wrong.append(f"resumed, ended with {code} and said {done.text}")
        else:
            wrong.append(left.difference(self.expected))
        shutil.rmtree(place)
        return outcomes, "; ".join(filter(None, wrong))

    def operations_in(self, phases: Sequence[str]) -> list[int]:
        """Return the numbers of the operations of some phases."""
        return [at for at, (phase, _, _) in enumerate(self.operations) if phase in phases]

    def moment(self, phase: str, rng: random.Random) -> Fault:
        """Return a kill at a random moment of a phase: at some time, or at some operation."""
        numbers = self.operations_in([phase])
        if numbers and rng.random() < 0.5:
            return Fault(rng.choice(numbers))
        return Fault(phase=phase, seconds=rng.uniform(0, self.phases[phase]))

    def _place(self) -> Path:
        """Return a new folder with what the command finds."""
        place = self._folder / str(next(_number))
        shutil.copytree(self._folder / "before", place)
        return place

    def _read(self, reader: Glance | TakeRemains) -> Any:
        found = self.forge.run(reader.folder, function=reader)
        if found.code:
            raise AssertionError(f"{self.scene.name}: what is there cannot be read: {found.text}")
        return found.value
