from __future__ import annotations

import pytest
from small_task import small_task

from edgeprune.tasks import Task


@pytest.fixture
def task() -> Task:
    return small_task()
