import pytest

from app.chat.speed_meter import BIN_SECONDS, Meter


def test_a_steady_speed_is_the_same_everywhere() -> None:
    meter = Meter()
    meter.begin(10.0)
    for step in range(1, 201):
        meter.add(10.0 + step * 0.05, 2)
    speed = meter.speed()
    assert speed.now == pytest.approx(40, rel=0.1)
    assert speed.average == pytest.approx(40)
    assert speed.peak == pytest.approx(40, rel=0.1)
    assert len(speed.bins) == pytest.approx(10 / BIN_SECONDS, abs=1)


def test_time_between_answers_counts_nowhere() -> None:
    meter = Meter()
    for start in (0.0, 1000.0):
        meter.begin(start)
        for step in range(1, 11):
            meter.add(start + step * 0.1, 3)
        meter.end()
    assert meter.speed().average == pytest.approx(30)
    assert meter.speed().now == 0.0


def test_a_stall_shows_as_slow_bins() -> None:
    meter = Meter()
    meter.begin(0.0)
    for step in range(1, 41):
        meter.add(step * 0.05, 1)
    meter.add(6.0, 1)
    assert meter.speed().p5 < 1
    assert meter.speed().peak == pytest.approx(20, rel=0.1)


def test_an_answer_shorter_than_a_bin_has_its_average_throughout() -> None:
    meter = Meter()
    meter.begin(0.0)
    meter.add(0.07, 7)
    meter.end()
    speed = meter.speed()
    for rate in (speed.average, speed.peak, speed.p5):
        assert rate == pytest.approx(100)
    assert speed.now == 0.0


def test_nothing_measured_is_zero() -> None:
    speed = Meter().speed()
    assert (speed.now, speed.average, speed.peak, speed.p5, speed.bins) == (0, 0, 0, 0, ())
