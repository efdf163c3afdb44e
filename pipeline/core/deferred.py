"""Libraries that are imported when something of them is first used.

dask's arrays, its data frames, xarray and scipy take a second or more to import together, and a job
that runs in threads needs little of them. A module that only some calls of a module need is named
so:

    if TYPE_CHECKING:
        import dask.array as da
    else:
        da = deferred("dask.array")
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pipeline


class _Deferred(ModuleType):
    """Stands for a module until an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)  # what looks at modules need not import them
        with pipeline.importing:  # no fork meanwhile
            if self.__name__ not in sys.modules:
                with pipeline.uncollected():
                    importlib.import_module(self.__name__)
            module = importlib.import_module(self.__name__)
            pipeline.register_accessor()
            return getattr(module, name)


def deferred(name: str) -> Any:
    """Return a stand-in for a module, which imports it when it is first used."""
    return _Deferred(name)
