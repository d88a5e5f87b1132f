"""Flags that several commands share, and the settings they stand for.

Names follow mlx-lm and llama.cpp where those have one.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from kvcache.errors import EmberError

if TYPE_CHECKING:
    from app.sampling import Sampling
    from kvcache import CacheConfig

DEFAULT_MODEL = "smollm2"

# Known before the cache library is imported; tests hold them to its own.
DEFAULT_KV = "hkivi5/turbo3u"
MOST_TOKENS = 2**31 - 1

_LONGEST_SHOWN = 40


def usage_error(command: str, message: str) -> int:
    """Say in one line what is wrong with the flags together; returns the exit code."""
    print(f"ember {command}: error: {message} (see ember {command} --help)", file=sys.stderr)
    return 2


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, or -m/--model MODEL."""
    parser.add_argument("name", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a GGUF file, a name from `ls`, or hf:owner/repo/file.gguf (default: smollm2)",
    )


def model_name(args: argparse.Namespace) -> str:
    """The model that the flags name, or the default. Raises EmberError where they name two."""
    return named_model(args) or DEFAULT_MODEL


def named_model(args: argparse.Namespace) -> str:
    """The model that the flags name, "" for none. Raises EmberError where they name two."""
    if args.model and args.name and args.model != args.name:
        raise EmberError(f"got two models, {args.name!r} and {args.model!r}: name one")
    return str(args.model or args.name or "")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are drawn."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temp", type=_number(0, 100), default=0.0, help="temperature; 0 is greedy (default: 0)"
    )
    group.add_argument("--top-p", type=_number(1e-9, 1), default=1.0, help="off at 1 (default)")
    group.add_argument("--top-k", type=whole(0), default=0, help="off at 0 (default)")
    group.add_argument("--min-p", type=_number(0, 1), default=0.0, help="off at 0 (default)")
    group.add_argument(
        "--repeat-penalty", type=_number(0.01, 10), default=1.0, help="off at 1 (default)"
    )
    group.add_argument("--seed", type=whole(0), help="makes a sampled run repeatable")
    group.add_argument(
        "--max-tokens", type=whole(1), default=512, help="longest answer (default: 512)"
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable"
    )


def sampling(args: argparse.Namespace) -> "Sampling":
    """The sampling settings that the flags give."""
    from app.sampling import Sampling

    return Sampling(
        temperature=args.temp,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        seed=args.seed,
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """How keys and values are held."""
    group = parser.add_argument_group("cache")
    group.add_argument(
        "--kv",
        type=codecs,
        default=DEFAULT_KV,
        metavar="K[/V]",
        help=f"codecs of older keys and values, as {DEFAULT_KV} (default), h8, q4 or f16",
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
        type=_keep,
        metavar="system|N",
        help="never let go of the system prompt, or of the first N tokens",
    )
    group.add_argument(
        "--hot-dtype",
        choices=["f16", "bf16", "f32"],
        default="f16",
        help="precision of unencoded keys and values (default: f16)",
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--ctx", type=tokens(1), metavar="N", help="tokens the window holds")
    size.add_argument("--kv-budget", metavar="SIZE", help="bytes the window takes, as 64MiB")
    group.add_argument(
        "--beyond-context",
        action="store_true",
        help="allow a window longer than the model was trained for",
    )
    group.add_argument(
        "--force", action="store_true", help="load what does not fit in this machine's memory"
    )
    group.add_argument(
        "--backend",
        choices=["auto", "reference", "cpu", "gpu"],
        default="auto",
        help="what computes: plain MLX, native CPU kernels or the GPU (default: auto)",
    )


def cache_config(args: argparse.Namespace) -> "CacheConfig":
    """The cache configuration that the flags give."""
    from kvcache import Backend, CacheConfig, HotDtype
    from kvcache.codecs import parse_pair
    from kvcache.config import parse_bytes

    given = {name: getattr(args, name) for name in ("hot", "sinks", "block")}
    policy = {name: value for name, value in given.items() if value is not None}
    keys, values = parse_pair(args.kv)
    return CacheConfig(
        max_tokens=args.ctx,
        budget=parse_bytes(args.kv_budget) if args.kv_budget else None,
        hot_dtype=HotDtype(args.hot_dtype),
        backend=Backend(args.backend),
        beyond_context=args.beyond_context,
        keys=keys.name,
        values=values.name,
        keep=args.keep if isinstance(args.keep, int) else 0,
        **policy,
    )


def codecs(text: str) -> str:
    """An argparse type: the codecs of keys and values, K[/V]."""
    from kvcache.codecs import parse_pair

    try:
        parse_pair(text)
    except EmberError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


KEEP_SYSTEM = "system"


def _keep(text: str) -> int | str:
    """An argparse type: how many tokens to keep, or KEEP_SYSTEM."""
    return text if text == KEEP_SYSTEM else int(tokens(0)(text))


class _Bounded:
    """An argparse type: a number within bounds."""

    def __init__(self, convert: type[int] | type[float], low: float, high: float) -> None:
        self._convert, self._low, self._high = convert, low, high

    def __call__(self, text: str) -> float:
        kind = "a whole number" if self._convert is int else "a number"
        bounds = f"{self._low:.10g} to {self._high:.10g}"
        if self._high == float("inf"):
            bounds = f"{self._low:g} or more"
        try:
            value = self._convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {_brief(text)!r}, expected {kind}") from None
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"got {_brief(text)}, expected {kind}, {bounds}")
        return value


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _number(low: float, high: float) -> _Bounded:
    return _Bounded(float, low, high)


def tokens(low: int) -> _Bounded:
    """An argparse type: a number of tokens, as many as a cache may be asked for."""
    return whole(low, MOST_TOKENS)


def whole(low: int, high: float = float("inf")) -> _Bounded:
    """An argparse type: a whole number within bounds."""
    return _Bounded(int, low, high)
