"""Flags that several commands share, and the settings they stand for.

Names follow mlx-lm and llama.cpp where those have one.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

from app import texts
from kvcache.errors import EmberError, quoted, short

if TYPE_CHECKING:
    from app.sampling import Sampling

T = TypeVar("T")
DEFAULT_MODEL = "smollm2"

# Known before the cache library is imported; tests hold it to its own.
DEFAULT_THINK_BUDGET = 8192
MOST_TOKENS = 2**31 - 1


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


def add_examples(parser: argparse.ArgumentParser, examples: str) -> None:
    """What one may type, a line each, below the flags of --help."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"examples:\n{indent(examples, '  ')}"


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, or -m/--model MODEL."""
    parser.add_argument("name", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a GGUF file, a name from `ls`, or hf:owner/repo[:Q4_K_M] (default: smollm2)",
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

    allowed(named, text)
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

    allowed(given_template, text)
    return text


def prompts_file(text: str) -> list[str]:
    """An argparse type: a file of prompts, a line each."""
    found = texts.lines(allowed(lambda path: texts.read_file(Path(path), "the prompts file"), text))
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
_OF_REQUESTS = (
    "What a request says goes before; what neither says is as the model's makers recommend."
)
_BY_MODEL = "What is not given is as the model's makers recommend. --temp 0 is greedy."


def add_sampling(parser: argparse.ArgumentParser, *, by_model: bool = False) -> None:
    """How tokens are drawn. by_model: as the model's makers recommend where no flag says it."""
    group = parser.add_argument_group("sampling", _BY_MODEL if by_model else _GREEDY)

    _add_drawing(group, by_model=by_model)
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


def _add_drawing(group: argparse._ArgumentGroup, *, by_model: bool) -> None:
    """The numbers of sampling."""

    def add(flag: str, kind: Bounded, off: float, about: str) -> None:
        said = "the model's" if by_model else f"{off:g}"
        default = None if by_model else off
        group.add_argument(flag, type=kind, default=default, help=f"{about} (default: {said})")

    add("--temp", number(0, 100), 0.0, "temperature; 0 is greedy")
    add("--top-p", number(1e-9, 1), 1.0, "the likeliest tokens of so much probability; off at 1")
    add("--top-k", tokens(0), 0, "so many of the likeliest tokens; off at 0")
    add("--min-p", number(0, 1), 0.0, "tokens of so large a share of the likeliest; off at 0")
    add("--repeat-penalty", number(0.01, 10), 1.0, "for what the last 64 tokens said; off at 1")


def add_defaults_of_requests(parser: argparse.ArgumentParser) -> None:
    """How a server answers requests that do not say it."""
    group = parser.add_argument_group("answers", _OF_REQUESTS)
    _add_drawing(group, by_model=True)
    group.add_argument(
        "--max-tokens",
        type=tokens(1),
        metavar="N",
        help="longest answer (default: what the prompt leaves of the window)",
    )
    group.add_argument(
        "--think",
        choices=[each.value for each in Think],
        default=Think.SHOW.value,
        help="send a model's thinking as reasoning_content, hide it, or switch it off "
        "(default: show)",
    )


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


def allowed(read: Callable[[str], T], text: str) -> T:
    """What `read` makes of a flag's text; what it refuses is bad usage."""
    try:
        return read(text)
    except EmberError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
