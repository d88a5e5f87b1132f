"""The cold ring's arrays as kernels take them: every part of every segment is an input.

The text names a part once, in PICK(part), and `segment` chooses among its arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import mlx.core as mx

from kvcache.gpu.arguments import Argument
from kvcache.gpu.families import Family
from kvcache.gpu.kernel import LEAST_SIZE, in_device_memory
from kvcache.snapshot import Snapshot

_STARTS = (Argument.START_0, Argument.START_1, Argument.START_2, Argument.START_3)
_SEGMENTS = len(_STARTS)  # as many as a ring has
_MOST_BUFFERS = 31  # that a Metal kernel takes


@dataclass(frozen=True, kw_only=True)
class Role:
    """Keys or values: `name` in the text, `index` in a segment's pair."""

    name: str
    index: int
    family: Family

    @property
    def inputs(self) -> tuple[str, ...]:
        """The parts as the text names them."""
        return tuple(f"{self.name}_{part}" for part in self.family.parts)

    @property
    def macros(self) -> tuple[tuple[str, str], ...]:
        """The family's structure and what to make it of."""
        parts = ", ".join(f"PICK({name})" for name in self.inputs)
        return (f"{self.name.upper()}S", self.family.structure), (
            f"{self.name.upper()}_PARTS",
            parts,
        )


def key_role(family: Family) -> Role:
    """Keys of a codec."""
    return Role(name="key", index=0, family=family)


def value_role(family: Family, *, index: int = 1) -> Role:
    """Values of a codec; with index 0 keys that are read the way of values."""
    return Role(name="value", index=index, family=family)


@dataclass(frozen=True, kw_only=True)
class SegmentInputs:
    """roles: what a kernel reads. others: how many buffers it has besides."""

    roles: tuple[Role, ...]
    others: int

    @cached_property
    def segments(self) -> int:
        """Segments that one launch can read: their parts must fit in a kernel's buffers."""
        parts = sum(len(role.inputs) for role in self.roles)
        return min(_SEGMENTS, (_MOST_BUFFERS - self.others) // parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names."""
        return tuple(
            f"{name}_{i}"
            for i in range(self.segments)
            for role in self.roles
            for name in role.inputs
        )

    @property
    def macros(self) -> tuple[tuple[str, str], ...]:
        """PICK and the roles' own."""
        last = self.segments - 1
        choice = "".join(f"segment == {i} ? name##_{i} : " for i in range(last))
        pick = ("PICK(name)", f"({choice}name##_{last})")
        return (pick, *(macro for role in self.roles for macro in role.macros))

    @cached_property
    def _parts(self) -> tuple[tuple[int, str], ...]:
        return tuple((role.index, part) for role in self.roles for part in role.family.parts)

    def inputs(self, held: Snapshot) -> list[list[mx.array]]:
        """Of each launch; one, unless there are too many parts."""
        count, parts = self.segments, self._parts
        launches = []
        for at in range(0, len(held.segments), count):
            taken = list(held.segments[at : at + count])
            taken += taken[:1] * (count - len(taken))  # never read
            launches.append([pair[i][part] for pair in taken for i, part in parts])
        # No part has fewer numbers than tokens.
        if held.kv_heads * held.block < LEAST_SIZE:
            return [[in_device_memory(part) for part in inputs] for inputs in launches]
        return launches

    def numbers(
        self, segments: int, slots: Sequence[int], *, first_slot: int, blocks: int
    ) -> list[dict[Argument, int]]:
        """Of each launch, of so many segments; otherwise as a `Snapshot` has them."""
        starts, launches = list(accumulate(slots, initial=0)), []
        for at in range(0, segments, self.segments):
            count = min(self.segments, segments - at)
            stop = starts[at + count]
            first = [*starts[at : at + count], *[stop] * (_SEGMENTS - count)]
            numbers = {
                **dict(zip(_STARTS, first, strict=True)),
                Argument.STOP: stop,
                Argument.SLOTS: sum(slots),
                Argument.FIRST_SLOT: first_slot,
                Argument.BLOCKS: blocks,
            }
            launches.append(numbers)
        return launches
