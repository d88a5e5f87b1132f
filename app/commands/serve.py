"""Answer editors, agents and scripts: a server of the OpenAI API."""

import argparse
import os
from typing import TYPE_CHECKING

from app import cache_flags, options

if TYPE_CHECKING:
    from app.serve.server_settings import ServerSettings

_SAMPLING = ("temp", "top_p", "top_k", "min_p", "repeat_penalty")
_EXAMPLES = """\
ember serve                              # the default model, http://127.0.0.1:8080/v1
ember serve smollm2-360m --ctx 4096 --kv-budget 256MiB
ember serve --port 0                     # a free port, which is printed
EMBER_API_KEY=secret ember serve --host 0.0.0.0
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_examples(parser, _EXAMPLES)
    options.add_model(parser)
    options.add_chat_template(parser)
    _add_network(parser.add_argument_group("network"))
    options.add_defaults_of_requests(parser)
    cache_flags.add_cache_of_many(parser)


def run(args: argparse.Namespace) -> int:
    """Answer until Ctrl-C or a kill."""
    settings = _settings(args)
    from app.kernels import compiling, wanted, wanted_later
    from app.serve.serving import serve
    from app.session import fetch_with_bar

    model = options.model_name(args)
    cache = settings.cache
    with compiling([*wanted(cache.backend, model), *wanted_later(cache)]):
        path = fetch_with_bar(model)
    return serve(path, settings, args.company)


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; one that other machines reach takes a key (default: 127.0.0.1)",
    )
    group.add_argument(
        "--port",
        type=options.whole(0, 65535),
        default=8080,
        metavar="N",
        help="0 takes a free one, which is printed (default: 8080)",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="what clients must send as a bearer token (default: EMBER_API_KEY, if set)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let web pages of this origin ask, * all; repeatable (default: this machine's alone)",
    )


def _settings(args: argparse.Namespace) -> "ServerSettings":
    from dataclasses import replace

    from app.serve.server_settings import ServerSettings

    given = {name: getattr(args, name) for name in _SAMPLING}
    return ServerSettings(
        host=args.host,
        port=int(args.port),
        key=args.api_key or os.environ.get("EMBER_API_KEY", ""),
        origins=tuple(args.allow_origin),
        cache=replace(cache_flags.cache_config(args), budget=None),
        total=args.kv_budget,
        load=cache_flags.load_options(args),
        hot=args.hot,
        sampling={name: value for name, value in given.items() if value is not None},
        max_tokens=args.max_tokens,
        think=options.Think(args.think),
        stored=cache_flags.bytes_or_none(args.cache_store),
    )
