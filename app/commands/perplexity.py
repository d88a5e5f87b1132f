"""Perplexity of a text, and how far a cache moves the model from its f16 cache."""

import argparse
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from app import cache_flags, options, texts
from app.streams import check_reader, print_json
from kvcache.errors import EmberError

if TYPE_CHECKING:
    from app.divergence import Divergence
    from app.session import Session


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a text file")
    parser.add_argument("-m", "--model", metavar="MODEL", help="as for run (default: smollm2)")
    options.add_pretokenizer(parser)
    parser.add_argument(
        "--tokens", type=options.whole(2), metavar="N", help="read the first N tokens only"
    )
    parser.add_argument(
        "--skip",
        type=options.whole(0),
        default=256,
        metavar="N",
        help="do not score the first N positions (default: 256)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cache_flags.add_cache(parser)
    parser.set_defaults(name=None, system=None, chat_template=None)


def run(args: argparse.Namespace) -> int:
    """Feed the text in decode mode through the cache, and through an f16 one of the same window."""
    from app.interrupt import cancel_on_interrupt
    from app.session import open_session

    text = texts.read_file(args.file, "the text")
    with open_session(args, raw=True) as session:
        ids = session.engine.loaded.tokenizer.encode(text)[: args.tokens]
        if len(ids) < args.skip + 2:
            raise EmberError(
                f"the text has {len(ids)} tokens, expected more than --skip {args.skip} and one"
            )
        with cancel_on_interrupt() as cancel:
            found = session.thread.call(lambda: _measure(session, ids, args.skip, cancel))
        if found is None:
            return cancel.exit_code
        plan = session.engine.plan
    result = found.as_dict() | {"bits": plan.cold_bits, "kv": plan.kv, "window": plan.max_tokens}
    if args.json:
        print_json(result)
    else:
        for name, value in result.items():
            print(f"{name:<14} {value if isinstance(value, int | str) else f'{value:.6g}'}")
    return 0


def _measure(session: "Session", ids: list[int], skip: int, cancel: Event) -> "Divergence | None":
    """The divergence of all scored positions; None after a cancel."""
    from dataclasses import replace

    from app.divergence import diverge, join
    from app.progress import token_bar
    from kvcache import make_prompt_cache

    engine = session.engine
    model, config = engine.loaded.model, engine.plan.config
    f16 = replace(config, keys="f16", values="f16", by_layer=(), max_tokens=engine.plan.max_tokens)
    parts = []
    with token_bar("reading") as report:
        for part in diverge(
            model,
            make_prompt_cache(model, config, metric=engine.metric),
            make_prompt_cache(model, replace(f16, budget=None)),
            ids,
            chunk=min(config.block, 64),
            skip=skip,
        ):
            if cancel.is_set():
                return None
            check_reader()
            parts.append(part)
            report(sum(len(one.kl) for one in parts), len(ids) - 1 - skip)
    return join(parts)
