"""How long a token should take on a GPU: computed from counts, nothing measured.

Bytes alone say what memory allows. Here a kernel also has instructions to issue, and every
launch a latency. What is counted lies in kernel_costs.json (`python -m tests.metal.costs`
writes it); what is assumed is a range, and so is the time.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from app.bench.figures.chips import Chip

FILE = Path(__file__).with_name("kernel_costs.json")
_LANES = 128  # of a core of Apple's GPUs: each issues one instruction a cycle at most
_AROUND = 6  # launches of a token outside of layers: embedding, last norm, logits, choice


@dataclass(frozen=True, kw_only=True)
class KernelCosts:
    """Instructions of threads, for one network's heads.

    encoded, unencoded: for each byte of such keys and values that is read.
    threadgroup: to begin and end one, whichever kernel's are more.
    encoding: for each byte that encoding a block reads and writes, by so many
    encoding_threadgroups of each KV head.
    """

    encoded: float
    unencoded: float
    threadgroup: int
    encoding: float
    encoding_threadgroups: int


@dataclass(frozen=True, kw_only=True)
class LaunchCosts:
    """Launches of one layer.

    token: while the window fills. letting_go: once tokens are let go. block: more of them with
    the token that completes a block. mlx_lm: of mlx-lm's network and unencoded cache.
    """

    token: int
    letting_go: int
    block: int
    mlx_lm: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """instructions: by the network's name.

    products: instructions of threads for each byte of blocks that a product with one row reads,
    by the blocks' type.
    """

    launches: LaunchCosts
    instructions: Mapping[str, KernelCosts]
    products: Mapping[str, float]

    @classmethod
    def read(cls) -> Self:
        """What was counted."""
        found = json.loads(FILE.read_text(encoding="utf-8"))
        return cls(
            launches=LaunchCosts(**found["launches"]),
            instructions={
                name: KernelCosts(**each) for name, each in found["instructions"].items()
            },
            products=found["products"],
        )

    def as_json(self) -> dict[str, Any]:
        """As the file has it."""
        return asdict(self)


@cache
def counted() -> Costs:
    """What the file says."""
    return Costs.read()


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What nobody has counted.

    bandwidth, issue: shares of the chip's peaks that kernels reach. launch_s: of one launch,
    beside its work.
    """

    bandwidth: float
    issue: float
    launch_s: float


# Guesses, wide enough to be right, until `make metal-check` has run on one of these chips.
FAST = Assumed(bandwidth=0.9, issue=0.8, launch_s=2e-6)
SLOW = Assumed(bandwidth=0.7, issue=0.4, launch_s=4e-6)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one token does, in all layers.

    weights, encoded, unencoded, other, encoding: bytes that are moved; encoding: for each token.
    instructions: of the kernels that read weights, encoded and unencoded tokens, and that encode.
    launches: of the token, and encoding's share of a block's.
    encoding_cores: that one launch of encoding has work for.
    """

    weights: float
    encoded: float = 0.0
    unencoded: float = 0.0
    other: float = 0.0
    encoding: float = 0.0
    weight_instructions: float = 0.0
    encoded_instructions: float = 0.0
    unencoded_instructions: float = 0.0
    launches: float = 0.0
    encoding_instructions: float = 0.0
    encoding_launches: float = 0.0
    encoding_cores: int = 1

    def seconds(self, chip: Chip, assumed: Assumed) -> float:
        """Of one token on a chip whose GPU is known. Each kernel takes its longer side."""
        moved_s, issued_s = _rates(chip, assumed)
        kernels = sum(
            max(moved / moved_s, issued / issued_s)
            for moved, issued in (
                (self.weights, self.weight_instructions),
                (self.encoded, self.encoded_instructions),
                (self.unencoded, self.unencoded_instructions),
            )
        )
        launches = (self.launches + _AROUND) * assumed.launch_s
        return self.other / moved_s + kernels + launches + self.encoding_seconds(chip, assumed)

    def encoding_seconds(self, chip: Chip, assumed: Assumed) -> float:
        """What of them is encoding."""
        moved_s, issued_s = _rates(chip, assumed)
        busy = min(1.0, self.encoding_cores / chip.gpu_cores)
        work = max(self.encoding / moved_s, self.encoding_instructions / (issued_s * busy))
        return work + self.encoding_launches * assumed.launch_s


def _rates(chip: Chip, assumed: Assumed) -> tuple[float, float]:
    """Bytes and instructions a second."""
    issued = chip.gpu_cores * _LANES * chip.gpu_ghz * 1e9
    return chip.gb_s * 1e9 * assumed.bandwidth, issued * assumed.issue
