"""Passkey recall: does a model find, among old tokens, the numbers it was told at first?

Several keys, then filler until they have left the hot tier, then a question for
each. Answers are fed as they should be; a key is recalled where every one of its
digits was the model's first choice. Source of the task: Mohtashami and Jaggi,
arXiv 2305.16300.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

_DOORS = ("red", "blue", "green", "black", "white", "brown")
_DIGITS = 5

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Passkeys:
    """ids: all that is fed. answers: where each answer's ids begin, and how many they are."""

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    def recalled(self, agrees: npt.NDArray[np.bool_]) -> float:
        """The share of keys recalled. agrees[i]: id i + 1 was the first choice after id i."""
        found = [agrees[start - 1 : start - 1 + count].all() for start, count in self.answers]
        return float(np.mean(found))


def make(
    encode: Encode, filler: Sequence[int], *, start: Sequence[int] = (), seed: int = 1
) -> Passkeys:
    """Passkeys with `filler` between telling and asking, after `start`. encode: text to ids."""
    rng = random.Random(seed)
    keys = {door: "".join(rng.choices("0123456789", k=_DIGITS)) for door in _DOORS}
    told = "".join(
        f"The pass key of the {door} door is {key}. Remember it.\n" for door, key in keys.items()
    )
    ids = [*start, *encode(told), *filler]
    answers = []
    for door in rng.sample(_DOORS, len(_DOORS)):
        ids += encode(f"\nThe pass key of the {door} door is")
        answer = encode(f" {keys[door]}")
        answers.append((len(ids), len(answer)))
        ids += answer
    return Passkeys(ids=tuple(ids), answers=tuple(answers))


def filler_tokens(ids: Sequence[int], count: int) -> list[int]:
    """`count` ids of a text, from its beginning over again where it is short."""
    return list(islice(cycle(ids), count))
