from app.pace import Pace


def test_a_rate_needs_two_counts() -> None:
    pace = Pace()
    assert (pace.rate, pace.left(100)) == (0.0, None)
    pace.note(50, 1.0)
    assert (pace.rate, pace.left(100)) == (0.0, None)
    pace.note(70, 3.0)
    assert (pace.rate, pace.left(100)) == (10.0, 3.0)


def test_what_was_there_before_is_not_counted() -> None:
    pace = Pace()
    pace.note(1_000_000, 0.0)
    pace.note(1_000_010, 1.0)
    assert pace.rate == 10.0


def test_the_last_seconds_count() -> None:
    pace = Pace()
    for second in range(100):
        pace.note(second if second < 80 else 80 + 5 * (second - 80), float(second))
    assert pace.rate == 5.0


def test_where_nothing_comes_there_is_no_end() -> None:
    pace = Pace()
    for second in range(30):
        pace.note(5, float(second))
    assert pace.left(10) is None


def test_fewer_than_before_begin_anew() -> None:
    pace = Pace()
    pace.note(100, 0.0)
    pace.note(10, 1.0)
    assert pace.rate == 0.0
    pace.note(30, 2.0)
    assert pace.rate == 20.0
