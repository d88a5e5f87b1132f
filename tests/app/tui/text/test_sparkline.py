from app.tui.text.sparkline import sparkline


def test_zero_is_the_bottom_and_the_greatest_the_top() -> None:
    assert sparkline([0, 8], 1) == [chr(0x2800 + 0xB8)]
    assert sparkline([4, 4], 1) == ["⣿"]
    assert sparkline([7.9, 8.0], 1) == ["⣿"]


def test_two_lines_share_the_height() -> None:
    assert sparkline([4, 8], 1, 2) == [chr(0x2800 + 0xB8), "⣿"]


def test_only_the_last_values_fit() -> None:
    assert sparkline([9, 9, 1, 1], 1) == ["⣿"]
    assert sparkline([], 3, 2) == ["\u2800" * 3] * 2
