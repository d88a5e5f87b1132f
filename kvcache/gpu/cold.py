"""The kernel over the cold blocks, made for a pair of codecs, and what its launches are given."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.arguments import MACROS, Argument
from kvcache.gpu.families import Family, family_of, level_table
from kvcache.gpu.kernel import Kernel
from kvcache.gpu.tiers import ColdBlocks

_SEGMENTS = 4  # as many as a ring has, and as the kernel has START_ arguments
_MOST_BUFFERS = 31  # that a Metal kernel takes
_OTHER_BUFFERS = 6  # queries, lowest, levels, args and two outputs


@dataclass(frozen=True, kw_only=True)
class ColdKernel:
    """segments: how many of the ring's a launch can read; their parts must fit in its buffers."""

    kernel: Kernel
    families: tuple[Family, Family]
    segments: int
    levels: mx.array

    def launches(self, cold: ColdBlocks) -> Iterator[tuple[list[mx.array], dict[Argument, int]]]:
        """The parts and the numbers of each launch; one, unless the codecs have many parts."""
        starts = [sum(cold.sizes[:i]) for i in range(len(cold.sizes) + 1)]
        for at in range(0, len(cold.segments), self.segments):
            taken = list(cold.segments[at : at + self.segments])
            stop = starts[at + len(taken)]
            first = [starts[at + i] if i < len(taken) else stop for i in range(_SEGMENTS)]
            taken += taken[:1] * (self.segments - len(taken))  # never read
            parts = [
                held[name]
                for pair in taken
                for held, family in zip(pair, self.families, strict=True)
                for name in family.parts
            ]
            numbers = {Argument(Argument.START_0 + i): start for i, start in enumerate(first)}
            yield parts, numbers | {Argument.STOP: stop}


@lru_cache(maxsize=64)
def cold_kernel(keys: Codec, values: Codec, dim: int) -> ColdKernel:
    """The kernel for blocks of these codecs. Raises CacheError where there is none."""
    families = family_of(keys, dim), family_of(values, dim)
    key_names, value_names = (
        tuple(f"{role}_{part}" for part in family.parts)
        for role, family in zip(("key", "value"), families, strict=True)
    )
    names = key_names + value_names
    segments = min(_SEGMENTS, (_MOST_BUFFERS - _OTHER_BUFFERS) // len(names))
    kernel = Kernel.load(
        "cold",
        inputs=(
            *("queries", "lowest", "levels", "args"),
            *(f"{name}_{i}" for i in range(segments) for name in names),
        ),
        outputs=("sums", "stats"),
        macros=(
            *MACROS,
            ("PICK(name)", _pick(segments)),
            ("KEYS", families[0].structure),
            ("KEY_PARTS", ", ".join(f"PICK({name})" for name in key_names)),
            ("VALUES", families[1].structure),
            ("VALUE_PARTS", ", ".join(f"PICK({name})" for name in value_names)),
        ),
    )
    return ColdKernel(
        kernel=kernel, families=families, segments=segments, levels=level_table(keys, values)
    )


def _pick(segments: int) -> str:
    """The C++ that chooses a part's buffer by the variable `segment`."""
    last = segments - 1
    return "(" + "".join(f"segment == {i} ? name##_{i} : " for i in range(last)) + f"name##_{last})"
