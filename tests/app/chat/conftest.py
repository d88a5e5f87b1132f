"""What several of these tests talk with."""

import pytest

from tests.app.chat.talk import Talk


@pytest.fixture
def talk() -> Talk:
    return Talk()
