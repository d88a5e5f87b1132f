"""What `update_and_fetch` gives to a network: keys and values that lead back to their cache.

Attention that knows them (`kvcache.mlx_lm.install`) follows them to the tiers instead of computing
with them. They are arrays, or stand for ones that nobody has decoded: whatever else is done with
such a one decodes it first. Knows no cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvcache.reference import Mask
from kvcache.snapshot import Tokens


class Fetch:
    """One call of `update_and_fetch`.

    attend: over the tiers as they were then; None where only decoded tokens tell what is asked.
    look: somebody computes with the tokens. decode: all of them, where they are not yet.
    """

    def __init__(
        self,
        attend: Callable[[mx.array, float, Mask], mx.array | None],
        *,
        look: Callable[[], None],
        decode: Callable[[], Tokens[mx.array]],
    ) -> None:
        self.attend, self.look, self._decode = attend, look, decode
        self._tokens: Tokens[mx.array] | None = None

    def marked(self, tokens: Tokens[mx.array]) -> Tokens[Any]:
        """Decoded tokens that lead here."""
        return Tokens(*(FetchedArray.of(self, place, x) for place, x in enumerate(tokens)))

    def standing_in(self, shape: Sequence[int], dtypes: Sequence[mx.Dtype]) -> Tokens[Any]:
        """What stands for keys and values of one shape, decoded only where somebody looks."""
        keys, values = (StandIn(self, place, shape, dtype) for place, dtype in enumerate(dtypes))
        return Tokens(keys, values)

    def tokens(self) -> Tokens[mx.array]:
        """The decoded tokens. Raises CacheError where the cache has changed since."""
        if self._tokens is None:
            self.look()
            self._tokens = self._decode()
        return self._tokens


class FetchedArray(mx.array):
    """Decoded keys (place 0) or values (1) of a fetch."""

    fetch: Fetch
    place: int

    @classmethod
    def of(cls, fetch: Fetch, place: int, decoded: mx.array) -> "FetchedArray":
        """The same numbers, marked."""
        made = cls(decoded)
        made.fetch, made.place = fetch, place
        return made


class StandIn:
    """Stands for keys (place 0) or values (1) of a fetch, and becomes them where it is used.

    MLX's own functions take no such object: they raise TypeError and name it. Its methods and
    operators, and attention while ours is installed, are those of the decoded array.
    """

    def __init__(self, fetch: Fetch, place: int, shape: Sequence[int], dtype: mx.Dtype) -> None:
        self.fetch, self.place = fetch, place
        self.shape, self.ndim, self.dtype = tuple(shape), len(shape), dtype

    def __repr__(self) -> str:
        return f"StandIn({('keys', 'values')[self.place]} {self.shape} of {self.dtype})"

    def decoded(self) -> mx.array:
        """The array. Raises CacheError where its cache has changed since."""
        return self.fetch.tokens()[self.place]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.decoded(), name)

    def __mlx__array__(self) -> mx.array:
        return self.decoded()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.decoded(), dtype)


def _decoding(operator: str) -> Callable[..., Any]:
    def of_the_array(self: StandIn, *given: Any) -> Any:
        return getattr(self.decoded(), operator)(*given)

    return of_the_array


for _name in vars(mx.array):
    # Python looks operators up in the class.
    if _name.startswith("__") and _name not in {*vars(StandIn), "__new__", "__hash__"}:
        setattr(StandIn, _name, _decoding(_name))


def fetch_of(keys: object, values: object) -> Fetch | None:
    """The fetch that gave exactly these; None where none did."""
    marked = FetchedArray | StandIn
    if not isinstance(keys, marked) or not isinstance(values, marked):
        return None
    pair = (keys.place, values.place) == (0, 1) and keys.fetch is values.fetch
    return keys.fetch if pair else None


def looked_at(tokens: Any) -> Any:
    """An array that somebody computes with. Raises CacheError where it cannot be had any more."""
    if isinstance(tokens, StandIn):
        return tokens.decoded()
    if isinstance(tokens, FetchedArray):
        tokens.fetch.look()
    return tokens
