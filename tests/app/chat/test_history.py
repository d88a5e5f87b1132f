"""What was typed before."""

from collections.abc import Sequence

from app.chat.history import PromptHistory


def test_earlier_texts_come_back_and_the_draft_stays() -> None:
    looked = []

    def earlier() -> Sequence[str]:
        looked.append(1)
        return ["one", "two", "one"]

    history = PromptHistory(earlier)
    assert history.step("draft", 1) is None
    assert looked == []
    history.add("three")
    assert history.step("draft", -1) == "three"
    assert history.step("three", -1) == "one"  # each once, where it came last
    assert history.step("one changed", -1) == "two"
    assert history.step("two", -1) is None
    assert history.step("two", 1) == "one changed"
    assert history.step("one changed", 1) == "three"
    assert history.step("three", 1) == "draft"
    assert history.step("draft", 1) is None
    history.add("one changed")
    assert [history.step("", -1), history.step("one changed", -1)] == ["one changed", "three"]
    assert looked == [1]


def test_there_may_be_nothing_to_recall() -> None:
    assert PromptHistory(list).step("draft", -1) is None
