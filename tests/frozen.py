"""What must not change when the code is moved or said anew, and the data that says what it is.

`python -m tests.frozen help` (or flags, caches, greedy) writes that data again: only after a
change that is meant, with a line in CHANGELOG. A saved cache that users may have is never
written again; a new form of it gets a file beside it.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import save_prompt_cache

from app import cli
from kvcache import Backend, CacheConfig, Rotation, TwoTierKVCache, make_prompt_cache
from models import LoadedModel, load
from models.finding.fetch import fetch
from models.text.messages import conversation

DATA = Path(__file__).parent / "data"
GREEDY = DATA / "frozen_greedy.json"
FLAGS = DATA / "frozen_flags.json"
HELP = DATA / "frozen_help.json"
# A codec of each family, keys and values of unlike ones side by side.
CODECS = (
    *("f16/f16", "q8/q3", "h4/h2", "turbo3/turbo4", "turbo2u/turbo3u", "turbo4p/turbo2p"),
    *("kivi4/q5", "hkivi5/turbo3u", "kvarn4/kvarn3"),
)
BACKENDS = (Backend.REFERENCE, Backend.CPU)
_HKV, _DIM, _TOKENS = 2, 64, 139
_STEPS, _WINDOW = 96, 200
_LINE = 96


def saved_caches(backend: Backend) -> Path:
    """Where a cache of each of CODECS is kept, as mlx-lm saves them."""
    return DATA / f"frozen_{backend.value}.safetensors"


def make_caches(backend: Backend) -> list[TwoTierKVCache]:
    """A cache of each of CODECS, fed unevenly until tokens are pinned, hot, cold and gone."""
    rotation = Rotation(periods=10000.0 ** (np.arange(0, _DIM, 2) / _DIM), traditional=True)
    caches = []
    for layer, pair in enumerate(CODECS):
        keys, values = pair.split("/")
        config = CacheConfig(
            max_tokens=101, hot=17, block=16, sinks=4, keys=keys, values=values, backend=backend
        )
        cache = TwoTierKVCache.from_config(config, layer=layer, rotation=rotation)
        rng = np.random.default_rng(layer)
        k, v = rng.normal(size=(2, 1, _HKV, _TOKENS, _DIM)).astype(np.float32)
        for start, end in ((0, 53), (53, 54), (54, 90), (90, _TOKENS)):
            cache.append(mx.array(k[:, :, start:end]), mx.array(v[:, :, start:end]))
        caches.append(cache)
    return caches


def greedy(loaded: LoadedModel, forced: list[int] | None = None) -> list[tuple[int, float]]:
    """The best next token and its lead in logits over the second, again and again.

    The window lets tokens go on the way. forced: what is said in place of the best tokens.
    """
    config = CacheConfig(max_tokens=_WINDOW, hot=32, keys="hkivi5", values="turbo3u")
    cache = make_prompt_cache(loaded.model, config)
    ids = loaded.template.encode(conversation("Tell me a story about a boat, a dog and the sea."))
    steps = []
    for step in range(_STEPS):
        logits = np.array(loaded.model(mx.array([ids]), cache)[0, -1])
        second, best = np.argsort(logits)[-2:].tolist()
        steps.append((best, round(float(logits[best] - logits[second]), 4)))
        ids = [best if forced is None else forced[step]]
    return steps


def flags() -> dict[str, list[str]]:
    """What can be typed after each command, and after the commands below it."""
    return {
        name: sorted({flag for each in parser._actions for flag in each.option_strings})
        for name, parser in _commands(cli.parser(), "ember")
    }


def helps() -> dict[str, list[str]]:
    """What each command says to --help, whatever the terminal and the Python."""
    return {name: _help(parser) for name, parser in _commands(cli.parser(), "ember")}


def _commands(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A command and those below it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, below in action.choices.items():
                yield from _commands(below, f"{name} {command}")


def _help(parser: argparse.ArgumentParser) -> list[str]:
    with patch.dict(os.environ, COLUMNS="10000"):  # argparse wraps nothing, not even at hyphens
        said = parser.format_help()
    text = re.sub(r"\x1b\[[\d;]*m", "", said)  # Python 3.14 paints it
    # Python 3.13 names a value once: "-m, --model MODEL".
    text = re.sub(r"(-\w) (\S+), (--\S+ \2)", r"\1, \3", text)
    return wrap(" ".join(text.split()), _LINE, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Write the data that is named."""
    for name in sys.argv[1:]:
        if name == "flags":
            FLAGS.write_text(json.dumps(flags(), indent=1) + "\n", encoding="utf-8")
        elif name == "help":
            HELP.write_text(json.dumps(helps(), indent=1) + "\n", encoding="utf-8")
        elif name == "greedy":
            loaded = load(fetch("smollm2"), backend=Backend.CPU)
            GREEDY.write_text(json.dumps(greedy(loaded)) + "\n", encoding="utf-8")
        elif name == "caches":
            for backend in BACKENDS:
                save_prompt_cache(str(saved_caches(backend)), make_caches(backend))
    return 0


if __name__ == "__main__":
    sys.exit(main())
