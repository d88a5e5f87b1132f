"""What a case says of itself, beside what the system says of its process."""

from pathlib import Path

import pytest

from app.bench.engines.case import Case, EngineName
from kvcache import EmberError
from tests.app.bench import outside


def _case(path: Path) -> Case:
    return Case(
        engine=EngineName.EMBER,
        model=str(path),
        kv="f16",
        backend="auto",
        threads=1,
        depth=0,
        pp=64,
        tg=3,
    )


def test_the_systems_peak_is_the_row_s(tiny_path: Path) -> None:
    found = outside.observe(_case(tiny_path))
    assert found.said.peak_rss_bytes == pytest.approx(found.peak_rss_bytes, rel=outside.TOLERANCE)
    # Seconds of the steps are a part of the whole.
    assert 0 < found.said.pp_s + sum(found.said.token_s) < found.wall_s


def test_a_case_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmberError, match=r"the case failed.*none\.gguf"):
        outside.observe(_case(tmp_path / "none.gguf"))


def test_a_difference_by_hand() -> None:
    found = outside.Comparison(figure="seconds", inside=1.9, outside=2.0)
    assert found.off == pytest.approx(-0.05)
