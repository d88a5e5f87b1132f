import pytest

from app.bench.machine import Machine
from app.bench.sections import speed


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that reads 100 kB in a second, and models of 8 kB a token."""
    monkeypatch.setattr(speed, "machine", lambda: Machine(read_bytes_s=100_000, flops=1))
    monkeypatch.setattr(speed, "token_bytes", lambda _: 8_000)
