"""Libraries that are imported when something of them is first used.

dask's arrays, its data frames, xarray and scipy take a second or more to import together, and a job
that runs in threads needs little of them. Those that many modules need are named here, to be
imported from here: `from pipeline.core.deferred import da, xr`; others are named by `deferred`
where they are needed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


if TYPE_CHECKING:
    import dask
    import dask.array as da
    import scipy.sparse as sparse
    import xarray as xr
else:
    dask = deferred("dask")
    da = deferred("dask.array")
    sparse = deferred("scipy.sparse")
    xr = deferred("xarray")

__all__ = ["da", "dask", "deferred", "sparse", "xr"]
