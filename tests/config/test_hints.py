"""Keys of images that are given to the job are named where they belong."""

from __future__ import annotations

import pytest

import pipeline
from pipeline.config import yaml_files
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import JobSettings
from pipeline.core.errors import ConfigError


def test_the_keys_that_are_known_as_those_of_images_are_all_of_theirs_that_a_job_has_not():
    expected = set(ImageSettings.model_fields) - set(JobSettings.model_fields)
    assert set(yaml_files._OF_IMAGES) == expected


def test_the_hint_is_the_key_that_works():
    with pytest.raises(ConfigError, match=r"did you mean 'images\.columns'"):
        pipeline.make_job({"name": "a", "images": "digits", "columns": {"label": "breed"}})
    with pytest.raises(ConfigError, match=r"did you mean 'images\.max_bad'"):
        pipeline.find_job("digits", ["max_bad=1"])
    assert pipeline.find_job("digits", ["images.max_bad=1"]).images.max_bad == 1
