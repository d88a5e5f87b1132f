"""A sample of the mutants: each is caught, or known to be harmless. `make metal-mutants`: all."""

import pytest

from tests.metal.build import find_compiler
from tests.metal.mutants import Mutant, caught, harmless, mutants

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

_EVERY = 100


def test_there_are_many_and_each_changes_its_file() -> None:
    found = mutants()
    assert len(found) > 500
    assert len({(each.file, each.text) for each in found}) == len(found)


def test_every_harmless_one_exists() -> None:
    assert set(harmless()) <= {each.line for each in mutants()}


@pytest.mark.parametrize(
    "mutant",
    [each for each in mutants()[::_EVERY] if each.line not in harmless()],
    ids=lambda each: each.line[:60],
)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    assert caught(mutant)
