"""Flags of the cache, and the settings they stand for.

Names follow mlx-lm and llama.cpp where those have one.
"""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from app.options import LoadOptions, allowed, tokens
from kvcache.errors import EmberError, short

if TYPE_CHECKING:
    from kvcache import CacheConfig

# Known before the cache library is imported; tests hold them to its own.
DEFAULT_CACHE_STORE = "2GiB"
DEFAULT_KV = "hkivi4/turbo4u"
LEAST_BITS, MOST_BITS = 1, 16
KEEP_SYSTEM = "system"


def add_cache(parser: argparse.ArgumentParser) -> None:
    """How keys and values are held, and what computes."""
    group = parser.add_argument_group("cache")
    _add_tiers(group)
    _add_window(group)
    _add_limits(group)


def add_cache_of_many(parser: argparse.ArgumentParser) -> None:
    """The same for sequences that share a budget, each with a window of its own."""
    group = parser.add_argument_group("cache")
    _add_tiers(group, keeps_system=False)
    group.add_argument(
        "--ctx", type=tokens(1), metavar="N", help="tokens the window of one sequence holds"
    )
    group.add_argument(
        "--kv-budget",
        type=budget,
        metavar="SIZE",
        help="bytes of all sequences, as 1GiB: so many windows are computed at once, the rest "
        "waits (default: 8 windows, or what memory has)",
    )
    _add_limits(group)


def add_backend(to: argparse._ActionsContainer) -> None:
    """What computes."""
    to.add_argument(
        "--backend",
        choices=["auto", "reference", "cpu", "gpu"],
        default="auto",
        help="what computes: plain MLX, CPU kernels or the GPU (default: auto)",
    )


def _add_tiers(group: argparse._ArgumentGroup, *, keeps_system: bool = True) -> None:
    """What each tier holds."""
    group.add_argument(
        "--kv",
        type=kv,
        default=DEFAULT_KV,
        metavar="K[/V]|BITS",
        help=f"codecs of older keys and values, as {DEFAULT_KV} (default), h8, q4 or f16, or bits "
        "a number, as 3.4, each layer's codecs chosen by what it loses",
    )
    group.add_argument(
        "--hot", type=tokens(0), metavar="N", help="newest tokens kept unencoded (default: 256)"
    )
    group.add_argument(
        "--sinks", type=tokens(0), metavar="N", help="first tokens never let go (default: 4)"
    )
    group.add_argument(
        "--block", type=tokens(1), metavar="N", help="tokens encoded together (default: 64)"
    )
    group.add_argument(
        "--keep",
        type=keep if keeps_system else tokens(0),
        metavar="system|N" if keeps_system else "N",
        help=f"never let go of {'the system prompt, or of ' * keeps_system}the first N tokens",
    )
    group.add_argument(
        "--hot-dtype",
        choices=["f16", "bf16", "f32"],
        default="f16",
        help="precision of unencoded keys and values (default: f16)",
    )


def _add_window(group: argparse._ArgumentGroup) -> None:
    """How much is held."""
    size = group.add_mutually_exclusive_group()
    size.add_argument("--ctx", type=tokens(1), metavar="N", help="tokens the window holds")
    size.add_argument(
        "--kv-budget", type=budget, metavar="SIZE", help="bytes the window takes, as 64MiB"
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    """What may be beyond a model's or a machine's limits, and what computes."""
    group.add_argument(
        "--beyond-context",
        action="store_true",
        help="allow a window longer than the model was trained for",
    )
    group.add_argument(
        "--force", action="store_true", help="load what does not fit in this machine's memory"
    )
    add_backend(group)


def add_cache_store(parser: argparse.ArgumentParser) -> None:
    """How much is kept on disk."""
    parser.add_argument(
        "--cache-store",
        type=cache_store,
        metavar="SIZE",
        help="bytes of encoded chats kept on disk, so that they go on at once; 0: none "
        f"(default: {DEFAULT_CACHE_STORE})",
    )
    parser.add_argument(
        "--sleep",
        type=cache_store,
        metavar="SIZE",
        help="of these, bytes of what a chat has let go of, for when it goes back (default: all)",
    )


def cache_store(text: str) -> str:
    """An argparse type: a number of bytes that may be 0, as text."""
    allowed(bytes_or_none, text)
    return text


def bytes_or_none(text: str) -> int:
    """Bytes, as "64MiB", or 0. Raises EmberError for anything else."""
    from kvcache.config import parse_bytes

    return 0 if text.strip() == "0" else parse_bytes(text)


def cache_config(args: argparse.Namespace) -> "CacheConfig":
    """The cache configuration that the flags give, but for bits: those are `LoadOptions.bits`."""
    from kvcache import Backend, CacheConfig, HotDtype

    given = {name: getattr(args, name) for name in ("hot", "sinks", "block")}
    policy = {name: value for name, value in given.items() if value is not None}
    keys, values = pair_of(args.kv)
    return CacheConfig(
        max_tokens=args.ctx,
        budget=args.kv_budget,
        hot_dtype=HotDtype(args.hot_dtype),
        backend=Backend(args.backend),
        beyond_context=args.beyond_context,
        keys=keys,
        values=values,
        keep=args.keep if isinstance(args.keep, int) else 0,
        **policy,
    )


def load_options(args: argparse.Namespace) -> LoadOptions:
    """What the flags say about a load; a command has those of them that mean something to it."""
    given = {field.name: getattr(args, field.name, None) for field in fields(LoadOptions)}
    given["bits"] = bits_of(getattr(args, "kv", DEFAULT_KV))
    return LoadOptions(**{name: value for name, value in given.items() if value is not None})


def codecs(text: str) -> str:
    """An argparse type: the codecs of keys and values, K[/V]."""
    from kvcache.codecs import parse_pair

    allowed(parse_pair, text)
    return text


def kv(text: str) -> str:
    """An argparse type: the codecs of keys and values, K[/V], or their mean bits by layer."""
    allowed(pair_of, text)
    return text


def pair_of(kv: str) -> tuple[str, str]:
    """The codecs of keys and values that `--kv` names; the default ones where it names bits.

    Which those are, a model's file tells (`LoadOptions.bits`). Raises EmberError.
    """
    from kvcache.codecs import parse_pair

    keys, values = parse_pair(kv if bits_of(kv) is None else DEFAULT_KV)
    return keys.name, values.name


def bits_of(text: str) -> float | None:
    """The bits that `--kv` names, 1 to 16; None for the names of codecs.

    Raises EmberError for a number beyond them.
    """
    try:
        found = float(text)
    except ValueError:
        return None
    if not LEAST_BITS <= found <= MOST_BITS:
        raise EmberError(f"got {short(text)} bits, expected {LEAST_BITS} to {MOST_BITS}")
    return found


def budget(text: str) -> int:
    """An argparse type: a number of bytes, as 64MiB."""
    from kvcache.config import parse_bytes

    return allowed(parse_bytes, text)


def keep(text: str) -> int | str:
    """An argparse type: how many tokens to keep, or KEEP_SYSTEM."""
    return text if text == KEEP_SYSTEM else int(tokens(0)(text))
