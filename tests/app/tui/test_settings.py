from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tui import settings as file
from app.tui.settings import Settings
from kvcache import EmberError


@given(
    st.builds(
        Settings,
        system=st.text(st.characters(exclude_categories=("Cs",))),
        temp=st.floats(0, 100),
        top_k=st.integers(0, 99),
        panes=st.booleans(),
    )
)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, found: Settings) -> None:
    path = tmp_path_factory.mktemp("config") / "deep" / "settings.toml"
    file.save(found, path)
    assert file.load(path) == found


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert file.load(tmp_path / "none.toml") == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temp = ", "cannot be read"),
        ("colour = 1", "no setting colour"),
        ('temp = "hot"', "expected a number"),
        ("temp = -1.0", "got temperature=-1.0"),
        ("max_tokens = 0", "at least 1"),
        ("panes = 1", "on or off"),
    ],
)
def test_a_bad_file_is_told_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(EmberError, match=said) as caught:
        file.load(path)
    assert str(path) in str(caught.value)


def test_settings_as_typed() -> None:
    changed = Settings().with_text("temp", "0.7").with_text("panes", "OFF").with_text("seed", "7")
    assert (changed.temp, changed.panes, changed.sampling().seed) == (0.7, False, 7)
    for name, text in (("temp", "warm"), ("temp", "nan"), ("top_k", "1.5"), ("bell", "loud")):
        with pytest.raises(EmberError, match=f"got {name} = "):
            Settings().with_text(name, text)
    with pytest.raises(EmberError, match="no setting 'tempo'"):
        Settings().with_text("tempo", "1")
