"""Measure speed, attention, quality, memory and the claims about KV caches, on this machine."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import cache_flags, options

if TYPE_CHECKING:
    from app.bench.settings import Settings

_Add = Callable[..., argparse.Action]

_SUMMARIES = {
    "speed": "prompts and generation, with peers beside ember",
    "load": "how soon a model answers, and the memory it takes, with llama.cpp beside ember",
    "attention": "one attention step, kernel by kernel, against the memory's bandwidth",
    "quality": "what each codec changes in the model's answers",
    "endless": "a text and a story far beyond the window",
    "needle": "is a fact still there once it is in the cold tier?",
    "lookup": "what drafts from the context gain, and cost where nothing matches",
    "hooked": "ember's caches in mlx-lm's own network, beside mlx-lm's own",
    "wake": "how soon a chat goes on that was kept on disk",
    "serve": "what several clients get of a server together, and who asks again",
    "memory": "bytes of caches by formula and filled, and what fits",
    "roofline": "the most that memory bandwidth allows, chip by chip: computed, nothing measured",
    "claim": "is a KV cache 10 to 100 times faster?",
}

_EXAMPLES = """\
ember bench --quick
ember bench speed -m smollm2-360m        # beside llama.cpp and mlx-lm, where they are installed
ember bench memory --json
ember bench quality --kv q8/q4 --kv hkivi4/turbo4u --out results
ember bench compare before/quality.json after/quality.json
"""
_WITHOUT = (
    "without one, all are run; endless, needle, lookup, hooked, wake and serve, which take long, "
    "only with --quick or by name"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's sections and flags."""
    options.add_examples(parser, _EXAMPLES)
    parser.set_defaults(section=None)
    _add_common(_adder(parser))
    sections = parser.add_subparsers(metavar="[SECTION]", description=_WITHOUT)
    for name, summary in _SUMMARIES.items():
        section = sections.add_parser(name, help=summary, description=summary)
        section.set_defaults(section=name)
        _add_common(_adder(section))
        _FLAGS[name](_adder(section))
    compare = sections.add_parser(
        "compare", help="what changed between two results", description="what changed"
    )
    compare.set_defaults(section="compare")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")


def run(args: argparse.Namespace) -> int:
    """Run one section or all; tables on stdout, or JSON; progress on stderr."""
    if args.section == "compare":
        from app.bench.compare import show

        return show(args.before, args.after)
    if threads := _given(args, "threads"):
        os.environ["EMBER_THREADS"] = str(threads)
    from app.bench.report import measure
    from app.bench.sections.all import SECTIONS
    from app.bench.settings import Settings
    from app.kernels import compiling, wanted, wanted_later
    from app.session import fetch_with_bar
    from kvcache import Backend, CacheConfig

    backend = _given(args, "backend") or "auto"
    name = _given(args, "model") or options.DEFAULT_MODEL
    config = CacheConfig(backend=Backend(backend))
    with compiling([*wanted(config.backend, name), *wanted_later(config)]):
        model = str(fetch_with_bar(name))
    common = Settings(model=model, backend=backend, threads=threads or 0)
    quick = bool(_given(args, "quick"))
    every = [
        name
        for name, section in SECTIONS.items()
        if (section.is_quick if quick else not section.by_name)
    ]
    jobs = [
        (SECTIONS[name], _settings(SECTIONS[name].settings, common, args))
        for name in ([args.section] if args.section else every)
    ]
    _require_room(common, [settings for _, settings in jobs], force=bool(_given(args, "force")))
    return measure(jobs, out=_given(args, "out"), as_json=bool(_given(args, "json")))


def _require_room(common: "Settings", jobs: "list[Settings]", *, force: bool) -> None:
    """Refuse a model, or caches of it, that the memory cannot hold. Raises TooLargeError."""
    from app.bench.figures.shapes import held_bytes, network_of
    from app.console import note
    from app.memory import LEAST_WINDOW
    from app.session import admit_file
    from kvcache import Backend, CacheConfig

    longest = max(settings.longest for settings in jobs)
    if not longest:
        return
    longest = max(longest, LEAST_WINDOW)
    backend, path = Backend(common.backend), Path(common.model)
    config = CacheConfig(
        backend=backend, max_tokens=longest, keys="f16", values="f16", beyond_context=True
    )
    weights = held_bytes(common.model, backend)
    for text in admit_file(path, config, network_of(common.model), weights, force=force).notes:
        note(text)


def _settings(kind: "type[Settings]", common: "Settings", args: argparse.Namespace) -> "Settings":
    """The section's own settings, with those that flags give."""
    base = kind(**vars(common)) if args.section else kind.whole(common)
    if _given(args, "quick"):
        base = kind.quick(common)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if name in vars(base) and name not in vars(common)
    }
    return replace(base, **given)


def _given(args: argparse.Namespace, name: str) -> Any:
    """A flag's value, or None where it was not given."""
    return getattr(args, name, None)


def _adder(parser: argparse.ArgumentParser) -> _Add:
    """Adds flags that leave no trace where they are not given."""
    return partial(parser.add_argument, default=argparse.SUPPRESS)


def _add_common(add: _Add) -> None:
    add("-m", "--model", metavar="MODEL", help="as for run (default: smollm2)")
    add("--backend", choices=["auto", "reference", "cpu", "gpu"], help="default: auto")
    add("--threads", type=options.whole(1, 1024), metavar="N", help="default: physical cores")
    add("--quick", action="store_true", help="a look in two minutes, all sections together")
    add("--json", action="store_true", help="print one JSON object")
    add("--force", action="store_true", help="measure what does not fit in memory")
    add("--out", type=Path, metavar="DIR", help="write JSON, Markdown and SVG charts there")


def _add_speed(add: _Add) -> None:
    _add_kv(add, "codecs of ember's cold tier", cache_flags.kv)
    add("--pp", type=options.tokens(1), metavar="N", help="prompt tokens to read (default: 512)")
    add("--tg", type=options.tokens(1), metavar="N", help="tokens to generate (default: 64)")
    add("--depths", type=_list(0), metavar="N,N", help="tokens held before (default: 0,2048,8192)")
    add("--reps", type=options.tokens(1), metavar="N", help="runs of each case (default: 3)")
    add("--batch", type=_list(1), metavar="N,N", help="rows computed together (default: 1)")
    add("--short", action="store_true", help="10, 50, 100 tokens too, with and without a cache")
    add("--peers", action="store_true", help="measure llama.cpp and mlx-lm too")


def _add_load(add: _Add) -> None:
    add("--reps", type=options.tokens(1), metavar="N", help="starts of each engine (default: 5)")
    add("--peers", action="store_true", help="measure llama.cpp too")


def _add_attention(add: _Add) -> None:
    _add_kv(add, "codecs of the cold tier")
    shapes = ["loaded", "tinyllama", "llama-2-7b"]
    add("--shape", choices=shapes, help="whose layers and heads (default: the loaded model's)")
    add("--contexts", type=_list(1), metavar="N,N", help="tokens held (default: 512,2048,8192)")
    add("--reps", type=options.tokens(1), metavar="N", help="timed steps (default: 15)")


def _add_quality(add: _Add) -> None:
    _add_kv(add, "pairs to measure (default: every codec, alone and together)", cache_flags.kv)
    add(
        "--allocate",
        type=_bits,
        metavar="BITS,BITS",
        help="rows of so many bits too, codecs chosen for each layer by what it loses",
    )
    add("--hot", type=_list(0), metavar="N,N", help="hot tokens of further rows (0,256,512)")
    add("--sinks", type=_list(0), metavar="N,N", help="sinks of further rows (default: 0)")
    add("--tokens", type=options.tokens(2), metavar="N", help="of the text (default: 1536)")
    add("--skip", type=options.tokens(0), metavar="N", help="first positions not scored (256)")


def _add_endless(add: _Add) -> None:
    add("--ctx", type=options.tokens(1), metavar="N", help="tokens of the window (default: 1024)")
    add("--tokens", type=options.tokens(2), metavar="N", help="of the text (default: 20000)")
    add("--generate", type=options.tokens(0), metavar="N", help="tokens to draw (default: 20000)")
    add("--samples", type=options.tokens(1), metavar="N", help="spans of a quarter (default: 10)")


def _add_needle(add: _Add) -> None:
    _add_kv(add, "codecs of the cold tier", cache_flags.kv)
    add("--needles", type=options.tokens(1), metavar="N", help="facts (default: 24)")
    add("--lengths", type=_list(1), metavar="N,N", help="of the text (default: 600 to 3000)")
    add("--hot", type=options.tokens(0), metavar="N", help="hot tokens (default: 256)")


def _add_lookup(add: _Add) -> None:
    add("--reps", type=options.tokens(1), metavar="N", help="runs of each task (default: 3)")
    add("--tokens", type=options.tokens(2), metavar="N", help="of an answer (default: 256)")


def _add_hooked(add: _Add) -> None:
    add("--depths", type=_list(0), metavar="N,N", help="tokens held before (default: 0,2048,8192)")
    add("--step", type=options.tokens(1), metavar="N", help="prompt tokens at a time (512)")
    add("--tg", type=options.tokens(1), metavar="N", help="tokens of a turn (default: 8)")
    add("--reps", type=options.tokens(1), metavar="N", help="turns of each cache (default: 3)")


def _add_wake(add: _Add) -> None:
    add("--tokens", type=options.tokens(1), metavar="N", help="of the chat (default: 3000)")
    add("--reps", type=options.tokens(1), metavar="N", help="questions to it (default: 7)")


def _add_serve(add: _Add) -> None:
    add("--clients", type=options.whole(1, 64), metavar="N", help="asking together (default: 8)")
    add("--tokens", type=options.tokens(2), metavar="N", help="of an answer (default: 64)")
    add("--prefix", type=options.tokens(1), metavar="N", help="that two requests share (2000)")
    add("--reps", type=options.tokens(1), metavar="N", help="runs of all (default: 3)")
    add("--peers", action="store_true", help="measure llama-server too, which must be on the path")


def _add_memory(add: _Add) -> None:
    _add_kv(add, "codecs of the cold tier")
    add("--contexts", type=_list(1), metavar="N,N", help="windows (default: 100 to 131072)")


def _add_roofline(add: _Add) -> None:
    _add_kv(add, "codecs of the cold tier, beside f16")
    add("--contexts", type=_list(1), metavar="N,N", help="tokens held (default: 4096,16384,32768)")


def _add_claim(add: _Add) -> None:
    shapes = ["phi-2", "tinyllama", "llama-2-7b", "loaded"]
    add("--shape", choices=shapes, help="whose operations are counted (default: phi-2)")
    add("--lengths", type=_list(1), metavar="N,N", help="tokens generated (default: 8 to 1024)")
    add(
        "--seconds",
        type=options.number(0, 1e6),
        metavar="S",
        help="time for measuring (default: 240)",
    )


def _add_kv(add: _Add, meaning: str, kind: Callable[[str], str] = cache_flags.codecs) -> None:
    """kind: `cache_flags.kv` where a model's own table of losses is at hand."""
    told, metavar = f"{meaning}; repeatable", "K[/V]"
    if kind is cache_flags.kv:
        told, metavar = f"{meaning}, or bits by layer; repeatable", "K[/V]|BITS"
    add("--kv", type=kind, action="append", metavar=metavar, help=told)


def _list(least: int) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: whole numbers of at least `least`, separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            numbers = (least - 1,)
        if min(numbers) < least or max(numbers) > options.MOST_TOKENS:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 0,2048")
        return numbers

    return parse


def _bits(text: str) -> tuple[float, ...]:
    """An argparse type: bits per element, separated by commas."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (0.0,)
    if not all(1 <= number <= 16 for number in numbers):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected bits such as 4.4,3.4")
    return numbers


_FLAGS = {
    "speed": _add_speed,
    "load": _add_load,
    "attention": _add_attention,
    "quality": _add_quality,
    "endless": _add_endless,
    "needle": _add_needle,
    "lookup": _add_lookup,
    "hooked": _add_hooked,
    "wake": _add_wake,
    "serve": _add_serve,
    "memory": _add_memory,
    "roofline": _add_roofline,
    "claim": _add_claim,
}
