from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.backend.label_studio.fake import FakeLabelStudio
from tests.backend.label_studio.web_server import WebServer

# How long one example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def other_web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def label_studio() -> FakeLabelStudio:
    return FakeLabelStudio()
