"""From logits to the next token: on a GPU with mlx-lm's samplers, on a CPU with `drawing`.

Greedy decoding needs none of them, and mlx-lm is imported only when it draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.drawing import Drawer
from kvcache.config import on_gpu
from kvcache.errors import EmberError, short

_PENALTY_WINDOW = 64
# Below it log-probabilities over the temperature leave float32; greedy draws the same.
_COLDEST = 1e-20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn; temperature 0 takes the most likely one.

    top_p, top_k, min_p: cut-offs, off at 1.0, 0 and 0.0; top_k of all tokens or more is off.
    repeat_penalty: divides the logits of the last 64 tokens; off at 1.0.
    seed: makes a run repeatable; None draws afresh.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        self._require("temp", self.temperature, 0 <= self.temperature <= 100, "0 to 100")
        self._require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        counts = _is_whole(self.top_k) and 0 <= self.top_k < 2**31
        self._require("top_k", self.top_k, counts, "0 (off) to 2^31 - 1, a whole number")
        self._require("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        self._require(
            "repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty <= 10, "above 0, max 10"
        )
        seed_fits = self.seed is None or (_is_whole(self.seed) and 0 <= self.seed < 2**64)
        self._require("seed", self.seed, seed_fits, "0 to 2^64 - 1, a whole number")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken: a colder one cannot be divided by."""
        return self.temperature < _COLDEST

    @staticmethod
    def _require(name: str, value: float | None, holds: bool, expected: str) -> None:
        if not holds:
            shown = f"{value:.15g}" if isinstance(value, float) else str(value)
            raise EmberError(f"got {name}={short(shown)}, expected {expected}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral)


def require_finite(peaks: npt.NDArray[np.floating]) -> None:
    """Raise EmberError where the largest of some logits is infinite, or NaN as among any NaN."""
    if not np.isfinite(peaks).all():
        raise EmberError(
            "the network gave NaN or infinity instead of probabilities: the model's weights are "
            "damaged, or too large for its activations; get the file again, or another "
            "quantization of it"
        )


class Sampler:
    """Draws the next tokens of a batch whose rows share their settings.

    prompts: token ids of each row; the repetition penalty counts them too.
    Making one seeds what draws when the settings have a seed; on a GPU that is MLX's generator.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> None:
        self._sampling = sampling
        self._draw: Callable[[mx.array], mx.array] | None = None
        self._penalize: Callable[[mx.array, mx.array], mx.array] | None = None
        self._recent = [mx.array(list(prompt[-_PENALTY_WINDOW:])) for prompt in prompts]
        if sampling.repeat_penalty != 1.0:
            from mlx_lm.sample_utils import make_repetition_penalty

            self._penalize = make_repetition_penalty(sampling.repeat_penalty, _PENALTY_WINDOW)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits [B, vocabulary] -> next ids [B], unevaluated."""
        tokens = self._pick(self._penalized(logits))
        if self._penalize is not None:
            self._recent = [
                mx.concatenate([recent, tokens[row : row + 1]])[-_PENALTY_WINDOW:]
                for row, recent in enumerate(self._recent)
            ]
        return tokens

    def correct(self, tokens: mx.array) -> None:
        """Other ids [B] were said than those drawn last."""
        if self._penalize is not None:
            self._recent = [
                mx.concatenate([recent[:-1], tokens[row : row + 1]])
                for row, recent in enumerate(self._recent)
            ]

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given batch rows."""
        self._recent = [self._recent[row] for row in rows]

    def _penalized(self, logits: mx.array) -> mx.array:
        if self._penalize is None:
            return logits
        rows = [
            self._penalize(recent, logits[row : row + 1]) for row, recent in enumerate(self._recent)
        ]
        return mx.concatenate(rows)

    def _pick(self, logits: mx.array) -> mx.array:
        if self._sampling.is_greedy:
            return mx.argmax(logits, axis=-1)
        if self._draw is None:
            self._draw = drawer(self._sampling, logits.shape[-1])
        return self._draw(logits)


def cpu_drawer(sampling: Sampling) -> Drawer:
    """What draws on the CPU, by a generator of its own: a seed draws the same beside others."""
    return Drawer(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )


def drawer(sampling: Sampling, size: int) -> Callable[[mx.array], mx.array]:
    """What draws from logits over a vocabulary of `size` tokens.

    A GPU is given its next token before it has told this one, so it draws by itself.
    """
    if not on_gpu():
        return cpu_drawer(sampling)
    from mlx_lm.sample_utils import make_sampler

    if sampling.seed is not None:
        mx.random.seed(sampling.seed)
    draw: Callable[[mx.array], mx.array] = make_sampler(
        temp=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k if sampling.top_k < size else 0,
        min_p=sampling.min_p,
    )

    def normalized(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        return draw(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    return normalized
