"""What each layer's keys and values lose in few bits: measured once of a model's file, and kept.

One layer at a time is encoded, the others are not, and how far the model's answers move is
measured on a text that no row of `bench quality` reads. Codecs that are not measured so are
taken to lose, in each layer, the share of a coarser one's loss that they lose in all together.
`kvcache.allocation` makes of it the codecs of each layer, for a mean of so many bits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path

from app import private
from app.cache_flags import bits_of
from app.divergence import Reading, compare, join, read
from kvcache import (
    Backend,
    CacheConfig,
    EmberError,
    KeyMetric,
    ModelShape,
    codec,
    make_prompt_cache,
)
from kvcache.allocation import Losses, allocate
from kvcache.cache_folder import cache_folder
from kvcache.codecs import parse_pair
from kvcache.errors import reason
from models.calibrate import TEXT, is_wanted
from models.gguf.identity import identity
from models.loader import LoadedModel

KEYS = ("hkivi5", "hkivi4", "hkivi3", "hkivi2")
VALUES = ("trellis4", "trellis3", "trellis2")
# What is measured layer by layer; finer ones lose a share of what the first of these does.
_KEYS = "hkivi3", "hkivi2"
_VALUES = "trellis3", "trellis2"
_F16 = "f16"
# Of the text, and its first positions that are not scored: the same for every table.
TOKENS, SKIP = 1024, 256
# Few, so that nearly all that is read is encoded.
_HOT = 128
# Another one wherever what is measured is another thing: then tables are made anew.
_FORM = 2

Step = Callable[[str], AbstractContextManager[None]]


def readings(layers: int) -> int:
    """How often the text is read for a table, the exact reading included."""
    return 1 + layers * (len(_KEYS) + len(_VALUES)) + len(KEYS) + len(VALUES)


def with_kv(config: CacheConfig, kv: str, path: Path, shape: ModelShape) -> CacheConfig:
    """`config` with the codecs that `--kv` names: a pair, or those of `in_bits`."""
    bits = bits_of(kv)
    if bits is not None:
        return in_bits(config, bits, path, shape)
    keys, values = parse_pair(kv)
    return replace(config, keys=keys.name, values=values.name)


def in_bits(config: CacheConfig, bits: float, path: Path, shape: ModelShape) -> CacheConfig:
    """`config` with the codecs of each layer that lose least in so many bits a number.

    path: the model's file. Raises EmberError where its table is not made, or for fewer bits than
    there are codecs for.
    """
    found = _table_of(path, shape.layers)
    if found is None:
        raise EmberError(
            f"kv of {bits:g} bits takes a table of what each layer of this model loses: "
            f"`ember calibrate {path} --by-layer` makes it, once, in some minutes"
        )
    return replace(config, by_layer=chosen(found, bits, config.block, shape.head_dim))


def chosen(losses: Losses, mean: float, block: int, dim: int) -> tuple[str, ...]:
    """The codecs of each layer that lose least in `mean` bits per element.

    block, dim: tokens and head dimension of a block. Raises CacheError for too few bits.
    """
    bits = {name: codec(name).bits_per_element(block, dim) for name in (*KEYS, *VALUES)}
    return allocate(losses, bits, mean)


def path_of(identity: str, *, plain: bool) -> Path:
    """Where the table of a file is kept; apart where keys are rounded plainly, by no metric."""
    return folder() / f"{identity}{'-plain' if plain else ''}.json"


def folder() -> Path:
    """Where tables are kept, each in a file that begins with the identity of its model's."""
    return cache_folder() / "allocation"


def _table_of(path: Path, layers: int) -> Losses | None:
    """That of a model's file as it is: by its metric if there is one, unless nobody wants it."""
    name = identity(path)
    for plain in (False, True) if is_wanted() else (True,):
        if (found := kept(path_of(name, plain=plain), layers)) is not None:
            return found
    return None


def measure(
    loaded: LoadedModel, metric: KeyMetric | None, step: Step, *, backend: Backend = Backend.AUTO
) -> Losses:
    """A model's losses. step: entered with the name of each of `readings`; what it raises ends
    the work.
    """
    model, layers = loaded.model, range(loaded.model.shape.layers)
    ids = loaded.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:TOKENS]
    if len(ids) < SKIP + 2:
        raise EmberError(f"the text has {len(ids)} of this model's tokens, expected {SKIP + 2}")
    config = CacheConfig(
        keys=_F16,
        values=_F16,
        hot=_HOT,
        max_tokens=len(ids) + 16 * CacheConfig.block,  # nothing is let go
        beyond_context=True,
        backend=backend,
    )

    def reading(by_layer: tuple[str, ...]) -> list[Reading]:
        caches = make_prompt_cache(model, replace(config, by_layer=by_layer), metric=metric)
        return list(read(model, caches, ids, chunk=config.block, skip=SKIP))

    with step("the f16 reference"):
        exact = reading(())

    def loss(pair: str, encoded: Sequence[int]) -> float:
        with step(f"{pair}, layers {encoded[0]} to {encoded[-1]}"):
            found = reading(tuple(pair if at in encoded else _F16 for at in layers))
            return float(
                join([compare(*each) for each in zip(found, exact, strict=True)]).kl.mean()
            )

    def role(names: Sequence[str], measured: Sequence[str], pair: str) -> dict[str, list[float]]:
        in_all = {name: loss(pair.format(name), layers) for name in names}
        found = {name: [loss(pair.format(name), [at]) for at in layers] for name in measured}
        finest = measured[0]
        for name in set(names) - set(measured):
            share = in_all[name] / in_all[finest]
            found[name] = [share * each for each in found[finest]]
        return {name: found[name] for name in names}

    return Losses(keys=role(KEYS, _KEYS, "{}/f16"), values=role(VALUES, _VALUES, "f16/{}"))


def kept(path: Path, layers: int) -> Losses | None:
    """The table at `path`; None where there is none, or a damaged one, or one of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["form"] != _FORM:
            return None
        keys, values = (
            _checked(found[role], names, layers)
            for role, names in (("keys", KEYS), ("values", VALUES))
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    return Losses(keys=keys, values=values)


def _checked(
    role: Mapping[str, Sequence[float]], names: Sequence[str], layers: int
) -> dict[str, list[float]]:
    """Raises ValueError, TypeError or KeyError for what is no loss of each of these layers."""
    found = {name: [float(each) for each in role[name]] for name in names}
    numbers = [each for of_layers in found.values() for each in of_layers]
    if {len(each) for each in found.values()} != {layers} or not all(map(isfinite, numbers)):
        raise ValueError("no losses of each layer")
    return found


def keep(losses: Losses, path: Path) -> None:
    """Write it there, whole or not at all. Raises EmberError where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private.write(path, json.dumps({"form": _FORM} | asdict(losses), indent=1) + "\n")
    except OSError as error:
        raise EmberError(
            f"cannot keep the table of losses in {path} ({reason(error)}): set EMBER_CACHE to a "
            "folder that can be written"
        ) from error
