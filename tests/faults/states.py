"""Any course of events: a store and a run are made, grown, killed, resumed, damaged and mended."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faults import acts
from faults.damage import KINDS, damage
from faults.forge import KILLED, Fault, Forge
from faults.scenes import RESULT, STORE

_number = itertools.count()
_specs = st.sampled_from(acts.SPECS)
# the numbers of operations that acts go through, and more: then nothing happens
_operations = st.integers(0, 1500)


class Disturbed(RuleBasedStateMachine):
    """A store and a run, and what the model says that they hold.

    Attributes
    ----------
    held
        The sources in the store, in order; nothing where it is not finished.
    ran
        What the store held when the run was made; None where it is not finished.
    begun
        What was killed and not resumed: on which result, the act, and what that holds in the end.
    damaged
        The files of one result that are damaged.
    verified
        Whether nothing happened since it was verified.
    """

    def __init__(self, forge: Forge, folder: Path, events: Counter[str]) -> None:
        super().__init__()
        self.forge, self.folder, self.events = forge, folder / str(next(_number)), events
        self.folder.mkdir()
        acts.write_sources(self.folder)
        self.held: tuple[int, ...] = ()
        self.ran: tuple[int, ...] | None = None
        self.begun: tuple[str, Callable[[], Any], tuple[int, ...]] | None = None
        self.damaged: tuple[str, ...] = ()
        self.verified = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # how acts are performed -----------------------------------------------------------------------

    def _call(self, act: Callable[[], Any]) -> tuple[Any, str]:
        found = self.forge.run(self.folder, function=partial(acts.attempt, act))
        assert found.code == 0, found.text
        value, refusal = found.value
        return value, refusal

    def _do(
        self, name: str, act: Callable[[], Any], after: tuple[int, ...], kill: int | None
    ) -> None:
        """Perform an act on the store or the run; `kill` is the operation at which it is killed."""
        self.verified, fault = False, Fault(kill)
        found = self.forge.run(self.folder, function=partial(acts.attempt, act), fault=fault)
        if found.code == KILLED:
            self.events["killed"] += 1
            self.begun = name, act, after
            return
        assert found.code == 0, found.text
        assert found.value == (None, "")
        self._finished(name, after)

    def _finished(self, name: str, after: tuple[int, ...]) -> None:
        self.begun = None
        if name == STORE:
            self.held = after
        else:
            self.ran = after

    @property
    def _is_idle(self) -> bool:
        return self.begun is None and not self.damaged

    # what may happen ------------------------------------------------------------------------------

    @precondition(lambda self: self._is_idle and not self.held)
    @rule(spec=_specs, kill=st.none() | _operations)
    def ingest(self, spec: int, kill: int | None) -> None:
        self.events["ingest"] += 1
        self._do(STORE, partial(acts.ingest, spec, False), (spec,), kill)

    @precondition(lambda self: self._is_idle and self.held)
    @rule(spec=_specs, kill=st.none() | _operations)
    def append(self, spec: int, kill: int | None) -> None:
        self.events["append"] += 1
        after = self.held if spec in self.held else (*self.held, spec)
        self._do(STORE, partial(acts.ingest, spec, True), after, kill)

    @precondition(lambda self: self._is_idle and self.held and self.ran is None)
    @rule(kill=st.none() | _operations)
    def run(self, kill: int | None) -> None:
        self.events["run"] += 1
        self._do(RESULT, acts.run, self.held, kill)

    @precondition(lambda self: self._is_idle and self.ran not in (None, self.held))
    @rule()
    def run_on_another_store(self) -> None:
        """The folder of the old run is refused, and made room for."""
        _, refusal = self._call(acts.run)
        assert refusal.startswith("ConflictError"), refusal
        self._check(RESULT, self.ran)
        shutil.rmtree(self.folder / RESULT)
        self.ran = None

    @precondition(lambda self: self.begun)
    @rule(kill=st.none() | _operations)
    def resume(self, kill: int | None) -> None:
        self.events["resume"] += 1
        name, act, after = self.begun
        self._do(name, act, after, kill)

    @precondition(lambda self: self.begun and self.begun[0] == STORE and self.held)
    @rule(spec=_specs)
    def append_another(self, spec: int) -> None:
        """While samples are being added others wait, or those are there, or were not begun."""
        _, _, after = self.begun
        if spec in after:
            return
        _, refusal = self._call(partial(acts.ingest, spec, True))
        if not refusal:  # all that was left of the other was to tidy up, or it had not begun
            alone = (*self.held, spec)
            is_alone = self._call(acts.checker(STORE, alone)) == ("", "")
            self.held, self.begun = alone if is_alone else (*after, spec), None
        else:
            assert refusal.startswith("ConflictError"), refusal

    @precondition(lambda self: self._is_idle and self.held)
    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16))
    def damage(self, kind: str, seed: int) -> None:
        self.events["damage"] += 1
        rng = random.Random(seed)
        result = rng.choice([STORE] if self.ran != self.held else [STORE, RESULT])
        self.verified = False
        self.damaged = damage(self.folder, result, kind, rng).files

    @precondition(lambda self: self.damaged)
    @rule()
    def run_again_on_damage(self) -> None:
        """What is damaged is refused, or makes no difference."""
        if self.ran is None:
            _, refusal = self._call(acts.run)
            if not refusal:
                self.ran = self.held
            else:
                shutil.rmtree(self.folder / RESULT, ignore_errors=True)

    @precondition(lambda self: self.held and self.begun is None and not self.verified)
    @rule()
    def verify(self) -> None:
        self.events["verify"] += 1
        self.verified = True
        for name in [STORE] + [RESULT] * (self.ran is not None):
            found, refusal = self._call(partial(acts.verify, name, False))
            missed = [
                f for f in self.damaged if f.startswith(f"{name}/") and f not in (found or ())
            ]
            assert all(file in refusal for file in missed), (missed, found, refusal)
            if not any(file.startswith(f"{name}/") for file in self.damaged):
                assert (found, refusal) == ([], "")

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self) -> None:
        self.events["repair"] += 1
        name = self.damaged[0].partition("/")[0]
        found, refusal = self._call(partial(acts.verify, name, True))
        assert refusal == ""
        assert set(self.damaged) <= set(found)
        self.damaged, self.verified = (), False

    # what always holds ----------------------------------------------------------------------------

    def _check(self, name: str, specs: tuple[int, ...]) -> None:
        found, refusal = self._call(acts.checker(name, specs))
        assert (found, refusal) == ("", "")

    @invariant()
    def what_is_finished_is_right(self) -> None:
        hurt = {file.partition("/")[0] for file in self.damaged}
        begun = self.begun[0] if self.begun else None
        for name, specs in ((STORE, self.held), (RESULT, self.ran)):
            if specs and name not in hurt and begun != name:
                self._check(name, specs)

    @invariant()
    def what_is_not_finished_is_refused_or_whole(self) -> None:
        if self.begun is None:
            return
        name, _, after = self.begun
        found, refusal = self._call(acts.checker(name, after))
        if (found, refusal) == ("", ""):
            return
        if name == STORE and self.held:
            self._check(STORE, self.held)
        else:
            assert refusal.startswith(("IncompleteError", "StoreError")), (found, refusal)
