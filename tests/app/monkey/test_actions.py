"""What a seed has the monkey do."""

from tests.app.monkey.actions import Ask, Edit, Keys, Type, script_of


def test_a_seed_decides_everything() -> None:
    made = [script_of(7, "a", model="file", length=40) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != script_of(7, "b", model="file", length=40)
    assert made[0] != script_of(8, "a", model="file", length=40)


def test_each_word_is_typed_once_and_models_are_named() -> None:
    actions = script_of(7, "a", model="/some/file", length=400).actions
    words = [each.word for each in actions if isinstance(each, Type | Ask | Edit)]
    assert len(words) == len(set(words)) > 50
    commands = [each.data for each in actions if isinstance(each, Keys)]
    assert any(b"/model /some/file" in each for each in commands)
    assert not any(b"{" in each and b"model}" in each for each in commands)
