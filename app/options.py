"""Flags that several commands share, and the settings they stand for.

Names follow mlx-lm and llama.cpp where those have one.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app import texts
from kvcache.config import DEFAULT_KV
from kvcache.errors import EmberError, quoted, short

if TYPE_CHECKING:
    from app.sampling import Sampling
    from kvcache import CacheConfig

T = TypeVar("T")
DEFAULT_MODEL = "smollm2"

# Known before the cache library is imported; tests hold them to its own.
DEFAULT_THINK_BUDGET = 8192
DEFAULT_CACHE_STORE = "2GiB"
MOST_TOKENS = 2**31 - 1
LEAST_BITS, MOST_BITS = 1, 16


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a user may say about a load.

    pretokenizer, chat_template: as for `models.load`. force: load what does not fit in memory.
    bits: a number's in the cache, where each layer has codecs of its own for it, which
    takes the model's file; None leaves the codecs to the cache's configuration.
    """

    pretokenizer: str | None = None
    chat_template: str | None = None
    force: bool = False
    bits: float | None = None


class UsageError(EmberError):
    """What is wrong with the flags, whatever the model."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, or -m/--model MODEL."""
    parser.add_argument("name", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a GGUF file, a name from `ls`, or hf:owner/repo/file.gguf (default: smollm2)",
    )
    add_pretokenizer(parser)


def add_pretokenizer(parser: argparse.ArgumentParser) -> None:
    """--pretokenizer NAME, for files that name none or a wrong one."""
    parser.add_argument(
        "--pretokenizer",
        type=pretokenizer,
        metavar="NAME",
        help="how text is cut into words before merging, by llama.cpp's name, as llama-bpe or "
        "qwen2 (default: what the file names)",
    )


def pretokenizer(text: str) -> str:
    """An argparse type: the name of a pre-tokenizer."""
    from models.text.pretokenizers import named

    _allowed(named, text)
    return text


def add_chat_template(parser: argparse.ArgumentParser) -> None:
    """The format of a conversation, in place of the model's own."""
    parser.add_argument(
        "--chat-template",
        type=chat_template,
        metavar="FILE|NAME",
        help="a jinja2 file, or chatml, llama2, llama3, mistral, gemma, phi3, phi4, phi4mini, "
        "granite, olmo2, zephyr, vicuna, alpaca (default: the model's own)",
    )


def chat_template(text: str) -> str:
    """An argparse type: a jinja2 file that can be read, or the name of a built-in template."""
    from models.text.builtin_templates import given_template

    _allowed(given_template, text)
    return text


def prompts_file(text: str) -> list[str]:
    """An argparse type: a file of prompts, a line each."""
    found = texts.lines(
        _allowed(lambda path: texts.read_file(Path(path), "the prompts file"), text)
    )
    if not found:
        raise argparse.ArgumentTypeError(f"the prompts file {text} is empty: write a prompt a line")
    return found


def model_name(args: argparse.Namespace) -> str:
    """The model that the flags name, or the default. Raises UsageError where they name two."""
    return named_model(args) or DEFAULT_MODEL


def named_model(args: argparse.Namespace) -> str:
    """The model that the flags name, "" for none. Raises UsageError where they name two."""
    if args.model and args.name and args.model != args.name:
        raise UsageError(f"got two models, {args.name!r} and {args.model!r}: name one")
    return str(args.model or args.name or "")


_GREEDY = (
    "Answers are greedy: the likeliest token each time, so that the same prompt gives the same "
    "answer. --temp 0.7 --top-p 0.95 draws; `ember inspect MODEL` shows what the model's makers "
    "recommend."
)
_BY_MODEL = "What is not given is as the model's makers recommend. --temp 0 is greedy."


def add_sampling(parser: argparse.ArgumentParser, *, by_model: bool = False) -> None:
    """How tokens are drawn. by_model: as the model's makers recommend where no flag says it."""
    group = parser.add_argument_group("sampling", _BY_MODEL if by_model else _GREEDY)

    def add(flag: str, kind: Bounded, off: float, about: str) -> None:
        said = "the model's" if by_model else f"{off:g}"
        default = None if by_model else off
        group.add_argument(flag, type=kind, default=default, help=f"{about} (default: {said})")

    add("--temp", number(0, 100), 0.0, "temperature; 0 is greedy")
    add("--top-p", number(1e-9, 1), 1.0, "the likeliest tokens of so much probability; off at 1")
    add("--top-k", tokens(0), 0, "so many of the likeliest tokens; off at 0")
    add("--min-p", number(0, 1), 0.0, "tokens of so large a share of the likeliest; off at 0")
    add("--repeat-penalty", number(0.01, 10), 1.0, "for what the last 64 tokens said; off at 1")
    group.add_argument("--seed", type=whole(0, 2**64 - 1), help="makes a sampled run repeatable")
    group.add_argument(
        "--max-tokens", type=tokens(1), default=512, help="longest answer (default: 512)"
    )
    group.add_argument(
        "--stop",
        type=texts.flag,
        action="append",
        default=[],
        metavar="TEXT",
        help="end at this text; repeatable",
    )
    group.add_argument(
        "--no-lookup",
        dest="lookup",
        action="store_false",
        help="draft no tokens from the context; the answer is the same",
    )
    group.add_argument(
        "--allow-loops",
        action="store_true",
        help="go on where an answer says the same again and again",
    )


class Think(StrEnum):
    """What becomes of thinking: its text, or the thinking itself."""

    SHOW = "show"
    HIDE = "hide"
    OFF = "off"


def add_thinking(parser: argparse.ArgumentParser) -> None:
    """What a model may think before it answers."""
    group = parser.add_argument_group("thinking")
    group.add_argument(
        "--think",
        choices=[each.value for each in Think],
        help="show a model's thinking on stderr, hide it, or switch it off (default: show on a "
        "terminal)",
    )
    group.add_argument(
        "--think-budget",
        type=tokens(0),
        default=DEFAULT_THINK_BUDGET,
        metavar="N",
        help=f"most tokens of thinking, then the answer (default: {DEFAULT_THINK_BUDGET})",
    )


def think_switch(args: argparse.Namespace) -> bool | None:
    """Whether the flags have the model think; None leaves it to its template."""
    return False if args.think == Think.OFF else None


def shows_thinking(args: argparse.Namespace) -> bool:
    """Whether thinking is to be seen on stderr."""
    if args.think is None:
        return sys.stderr.isatty()
    return bool(args.think == Think.SHOW)


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
    """How keys and values are held, and what computes."""
    group = parser.add_argument_group("cache")
    _add_tiers(group)
    _add_window(group)
    group.add_argument(
        "--force", action="store_true", help="load what does not fit in this machine's memory"
    )
    group.add_argument(
        "--backend",
        choices=["auto", "reference", "cpu", "gpu"],
        default="auto",
        help="what computes: plain MLX, CPU kernels or the GPU (default: auto)",
    )


def _add_tiers(group: argparse._ArgumentGroup) -> None:
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
        type=keep,
        metavar="system|N",
        help="never let go of the system prompt, or of the first N tokens",
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
    group.add_argument(
        "--beyond-context",
        action="store_true",
        help="allow a window longer than the model was trained for",
    )


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
    _allowed(bytes_or_none, text)
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

    _allowed(parse_pair, text)
    return text


def kv(text: str) -> str:
    """An argparse type: the codecs of keys and values, K[/V], or their mean bits by layer."""
    _allowed(pair_of, text)
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

    return _allowed(parse_bytes, text)


def _allowed(read: Callable[[str], T], text: str) -> T:
    """What `read` makes of a flag's text; what it refuses is bad usage."""
    try:
        return read(text)
    except EmberError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


KEEP_SYSTEM = "system"


def keep(text: str) -> int | str:
    """An argparse type: how many tokens to keep, or KEEP_SYSTEM."""
    return text if text == KEEP_SYSTEM else int(tokens(0)(text))


class Bounded:
    """An argparse type: a number within bounds."""

    def __init__(self, convert: type[int] | type[float], low: float, high: float) -> None:
        self._convert, self.low, self.high = convert, low, high

    def __call__(self, text: str) -> float:
        kind = "a whole number" if self._convert is int else "a number"
        bounds = f"{self.low} to {self.high}"
        if self.high == math.inf:
            bounds = f"{self.low} or more"
        try:
            value = self._convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {quoted(text)}, expected {kind}") from None
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(f"got {short(text)}, expected {kind}, {bounds}")
        return value


def number(low: float, high: float) -> Bounded:
    """An argparse type: a number from `low` to `high`."""
    return Bounded(float, low, high)


def whole(low: int, high: float = math.inf) -> Bounded:
    """An argparse type: a whole number from `low` to `high`."""
    return Bounded(int, low, high)


def tokens(low: int) -> Bounded:
    """An argparse type: a number of tokens, as many as a cache may be asked for."""
    return whole(low, MOST_TOKENS)
