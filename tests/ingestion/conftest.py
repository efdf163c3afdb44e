"""A store that was made in one go."""

from __future__ import annotations

import pytest
from ingests_for_tests import NAMES, SHARD, make_arrays

from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The store of `make_arrays()`, made in one go; to be read only."""
    path = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    return ingest(from_arrays(make_arrays(), NAMES), path, shard_samples=SHARD)
