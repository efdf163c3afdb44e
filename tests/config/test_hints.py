"""Keys of images that are given to the job are named where they belong."""

from __future__ import annotations

import pytest

import pipeline
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import JobSettings
from pipeline.core.errors import ConfigError


@pytest.mark.parametrize(
    "key", sorted(set(ImageSettings.model_fields) - set(JobSettings.model_fields) - {"source"})
)
def test_a_key_of_images_is_named_where_it_belongs(key):
    with pytest.raises(ConfigError, match=rf"did you mean 'images\.{key}'"):
        pipeline.make_job({"name": "a", "images": "digits", key: 1})


def test_the_hint_is_the_key_that_works():
    with pytest.raises(ConfigError, match=r"did you mean 'images\.columns'"):
        pipeline.make_job({"name": "a", "images": "digits", "columns": {"label": "breed"}})
    with pytest.raises(ConfigError, match=r"did you mean 'images\.max_bad'"):
        pipeline.find_job("digits", ["max_bad=1"])
    assert pipeline.find_job("digits", ["images.max_bad=1"]).images.max_bad == 1
