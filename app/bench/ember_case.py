"""Times ember's own network and cache."""

from dataclasses import replace

import mlx.core as mx

from app.bench.case import WARM_UP, Case, Measurement
from app.bench.timing import time_case
from app.engine import PREFILL_STEP
from app.report import peak_rss
from kvcache import Backend, CacheConfig, make_prompt_cache
from kvcache.codecs import parse_pair
from kvcache.native.library import library
from kvcache.stats import sum_layers
from models import load


def measure(case: Case) -> Measurement:
    """Fill the cache to the case's depth, then read and generate."""
    keys, values = parse_pair(case.kv)
    base = CacheConfig(
        keys=keys.name, values=values.name, backend=Backend(case.backend), beyond_context=True
    )
    # Whole blocks, so that nothing that is measured is let go.
    config = replace(base, max_tokens=case.window + base.sinks + base.hot + 2 * base.block)
    model = load(case.model, backend=config.backend).model
    cache = make_prompt_cache(model, config)
    backend = config.backend.resolve()
    step = PREFILL_STEP[backend]

    logits = mx.zeros((1, model.vocabulary))

    def read(start: int, count: int) -> None:
        nonlocal logits
        ids = case.tokens(start, count, model.vocabulary)
        for at in range(0, count, step):
            hidden = model.hidden(mx.array([ids[at : at + step]]), cache)
            mx.eval([layer.pending() for layer in cache])
        logits = model.logits(hidden[:, -1])
        mx.eval(logits)

    def advance() -> None:
        nonlocal logits
        token = mx.argmax(logits, axis=-1)  # [1]
        logits = model(token[None], cache)[:, -1]
        mx.eval(logits)

    read(0, min(case.pp, WARM_UP))
    for layer in cache:
        layer.clear()
    pp_s, token_s = time_case(case, read, advance)
    return Measurement(
        backend=backend.value,
        threads=library().threads if backend is Backend.CPU else 0,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=sum_layers(layer.stats() for layer in cache).held_bytes,
        peak_rss_bytes=peak_rss(),
    )
