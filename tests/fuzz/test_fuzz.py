"""A short walk of every target, by chance, so that the same inputs come everywhere."""

from random import Random

import pytest

from kvcache import EmberError
from tests.fuzz.__main__ import tried
from tests.fuzz.limits import CostError, Limited
from tests.fuzz.mutation import MOST_BYTES, mutated, mutated_file
from tests.fuzz.targets import TARGETS

# Inputs that take some seconds, start not counted.
_INPUTS = {"model": 150, "template": 60, "chats": 150, "cache": 300, "piece": 150}
_OTHERS = 600


@pytest.mark.parametrize("name", TARGETS)
def test_what_nobody_meant_is_refused_or_answered(name: str) -> None:
    found = tried(
        name, "--by-chance", "--seconds", "600", "--inputs", str(_INPUTS.get(name, _OTHERS))
    )
    assert not found.failure, f"{found.input}: {found.failure}"
    assert found.inputs >= _INPUTS.get(name, _OTHERS)


def test_good_inputs_are_good() -> None:
    for name in ("header", "model", "blocks", "tokenizer", "export", "cache", "piece"):
        target = TARGETS[name]
        limited = Limited(target.read, seconds=60)
        for data in target.seeds():
            limited(data)
        assert limited.answered, name


@pytest.mark.parametrize("name", ["cache", "piece"])
def test_what_is_changed_behind_a_sum_passes_it(name: str) -> None:
    """Some mutants are refused for what they say, not for their sums, and some are caches."""
    target, said = TARGETS[name], list[str]()
    good, rng = target.seeds()[-1], Random(5)
    for _ in range(60):
        try:
            target.read(target.mutate(good, rng))
        except EmberError as error:
            said.append(str(error))
    assert len(said) < 60
    if name == "cache":
        others = [each for each in said if "its sum is not" not in each]
        assert len(set(others)) > 10


def test_a_seed_gives_the_same_inputs() -> None:
    good = TARGETS["header"].seeds()[0]
    first, again = ([mutated_file(good, Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 40
    assert len(mutated(bytes(MOST_BYTES), Random(3))) <= MOST_BYTES


def _refuses(_data: bytes) -> None:
    raise EmberError("no")


def _fails(_data: bytes) -> None:
    raise KeyError


def _says_two_lines(_data: bytes) -> None:
    raise EmberError("no\nno")


def _takes_long(_data: bytes) -> None:
    sum(range(3_000_000))


def test_limits() -> None:
    limited = Limited(_refuses)
    limited(b"x")
    assert (limited.refused, limited.answered) == (1, 0)
    for reads, error in ((_fails, KeyError), (_says_two_lines, AssertionError)):
        with pytest.raises(error):
            Limited(reads)(b"x")
    with pytest.raises(CostError, match="took"):
        Limited(_takes_long, seconds=0)(b"x")
    peaks = iter((100 << 20, 400 << 20))
    with pytest.raises(CostError, match="300 MiB"):
        Limited(lambda _data: None, seconds=60, peak=lambda: next(peaks))(b"x")
