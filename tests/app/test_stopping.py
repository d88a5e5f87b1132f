import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stopping import StopStrings


def _feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    watcher = StopStrings(stops)
    shown = "".join(watcher.add(piece) for piece in pieces)
    return shown + watcher.finish(), watcher.stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["one EN", "D two"], ("one ", True)),
        (["END"], ["one EN", "tire"], ("one ENtire", False)),
        (["END"], ["one EN"], ("one EN", False)),
        (["b", "abc"], ["a", "b", "c"], ("a", True)),
        (["\n\n"], ["x\n", "y\n", "\nz"], ("x\ny", True)),
        (["aab"], ["aaab"], ("a", True)),
        ([], ["anything"], ("anything", False)),
        ([""], ["anything"], ("anything", False)),
    ],
)
def test_text_ends_before_the_first_stop(
    stops: list[str], pieces: list[str], expected: tuple[str, bool]
) -> None:
    assert _feed(stops, pieces) == expected


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_pieces_show_what_the_whole_text_would(stops: list[str], pieces: list[str]) -> None:
    watcher = StopStrings(stops)
    shown = "".join(watcher.add(piece) for piece in pieces) + watcher.finish()
    text = "".join(pieces)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert watcher.stopped == any(stop in text for stop in stops)
    if not watcher.stopped:
        assert shown == text
