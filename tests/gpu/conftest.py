"""The stand-ins are compiled before any test: what it starts has a limit of time, and none for that."""

import pytest
from standin.build import build


@pytest.fixture(scope="session", autouse=True)
def _standins() -> None:
    build()
