"""A Hub on the loopback interface, and a process with the real client, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.hub_client import Client
from support.hub_server import Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    machine = Client(hub, tmp_path_factory.mktemp("home"))
    yield machine
    machine.close()
