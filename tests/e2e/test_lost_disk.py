"""The learner's disk is gone: another learner goes on from the store, with the same actor."""

import shutil
from pathlib import Path

import pytest

import turnwise
from tests.e2e.deployment import eventually, journal_rows, status, wait_learned
from tests.object_store import Buckets, _cloud, buckets, free_port  # noqa: F401
from turnwise_deploy.child import Child

DOMAIN = Path(__file__).parents[2] / "examples/quickstart/domain.yaml"
