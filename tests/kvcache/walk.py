"""A long walk of everything that a cache can be asked, against a list of tokens.

python -m tests.kvcache.walk STEPS [--backend cpu|reference] [--seed N] [--record FILE]
"""

import argparse
import time
from collections import Counter
from copy import deepcopy
from random import Random

from kvcache import Backend
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from tests.kvcache.test_two_tier import Pair, make_plan
from tests.reliability.record import Row, add_flag, keep

# Steps with one cache, before another configuration.
_STAY = 50
_KEYS = ("h8", "hkivi4", "hkivi5", "kvarn4", "q4", "q6", "f16")
_VALUES = ("turbo4u", "turbo3u", "trellis3", "q4", "q8", "f16")
KINDS = ("append", "attend", "rewind", "trim", "restart", "set_policy", "save_and_load", "fork")
_WEIGHTS = (4, 8, 3, 2, 1, 1, 1, 1)


class Walk:
    """Steps that a seed decides. walked: how many of each kind there were."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._rng, self._backend = Random(seed), backend
        self._pair = self._begun()
        self.walked: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        """Raises AssertionError for what the list of tokens does not say."""
        for step in range(steps):
            if step % _STAY == 0:
                self._pair = self._begun()
            (name,) = self._rng.choices(KINDS, _WEIGHTS)
            try:
                self._take(name)
                # What is in the tokens, the next outputs say too, and cost less.
                if name in ("append", "attend"):
                    self._pair.check_counts()
                else:
                    self._pair.check()
            except AssertionError as error:
                where = f"step {step}, {name}, {self._pair.cache.plan}"
                raise AssertionError(f"{where}: {error}") from error
            self.walked[name] += 1

    def _begun(self) -> Pair:
        return Pair.of(self._plan(self._sizes(self._rng.randint(0, 5))), batch=1)

    def _take(self, name: str) -> None:
        pair = self._pair
        match name:
            case "set_policy":
                pair.set_policy(self._plan(self._sizes(pair.cache.plan.sizes.pinned)))
            case "save_and_load":
                pair.save_and_load()
            case "fork":  # the other goes another way, and what stays knows nothing of it
                other = deepcopy(pair)
                other.append(self._rng.randint(1, 60))
                other.check()
            case _:
                getattr(pair, name)(self._rng.choice((1, 1, 2, self._rng.randint(1, 70))))

    def _plan(self, sizes: TierSizes) -> LayerPlan:
        kv = self._rng.choice(_KEYS), self._rng.choice(_VALUES)
        return make_plan(sizes, kv, self._backend)

    def _sizes(self, pinned: int) -> TierSizes:
        rng = self._rng
        return TierSizes(
            pinned=pinned,
            hot=rng.choice((0, 1, 9, 33)),
            block=rng.choice((1, 16, 16, 32, 32, 32, 48)),
            slots=rng.choice((0, 1, 2, 5)),
        )


def main() -> None:
    """Raises AssertionError where a cache is not what the list of tokens says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("steps", type=int)
    parser.add_argument("--backend", type=Backend, default=Backend.CPU)
    parser.add_argument("--seed", type=int, default=100)
    add_flag(parser)
    given = parser.parse_args()
    walk, began = Walk(given.backend, given.seed), time.monotonic()
    walk.run(given.steps)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in walk.walked.most_common())
    print(f"{given.steps:,} steps: {kinds}")
    row = Row(
        program="walk",
        what=f"cache, {given.backend.value}",
        count=given.steps,
        unit="steps",
        seconds=time.monotonic() - began,
        faults=0,
        detail=kinds,
        command=f"python -m tests.kvcache.walk {given.steps}",
    )
    keep(given.record, row)


if __name__ == "__main__":
    main()
