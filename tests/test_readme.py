"""The README's library example is run as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.network
def test_the_library_example_runs(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smollm2_path.exists()
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == " Paris.\n7 tokens held\n"
