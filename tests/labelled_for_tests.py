"""Data sets in memory as labelled sources: what a store would hold, without writing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from pipeline.sources.xarray_groups import ROOT, Group
from pipeline.sources.xarray_source import make_source


@dataclass(frozen=True)
class MemoryGroup(Group):
    held: xr.Dataset

    def dataset(self):
        return self.held

    def require_unchanged(self):
        pass

    def close(self):
        pass

    def describe(self):
        return {}


def from_datasets(datasets, variables=None, dims=None, class_names=None):
    groups = {n: [MemoryGroup(Path(n), ROOT, "", dataset)] for n, dataset in datasets.items()}
    return make_source(groups, variables or {}, dims or {}, class_names)
