"""What docs/serving.md tells clients to send is answered as it says."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serve.server_settings import ServerSettings
from kvcache import CacheConfig
from tests.app.serve.conftest import Served, serving
from tests.patience import patience

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Served]:
    with serving(smollm2_path, ServerSettings(cache=CacheConfig(max_tokens=1024))) as served:
        yield served


def block(kind: str, served: Served) -> str:
    """The example of a kind, for this server."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert BASE in found
    return str(found).replace(BASE, served.url)


@pytest.mark.network
def test_curls_example_is_answered(smollm2: Served) -> None:
    done = subprocess.run(
        ["bash", "-c", block("bash", smollm2)],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "smollm2"


@pytest.mark.network
def test_the_clients_example_is_answered(
    smollm2: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block("py", smollm2), "serving.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "The capital of France is Paris."
