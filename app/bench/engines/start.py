"""Loads a model as a program does, says a token, then holds it until stdin ends: `bench load`'s.

    python -m app.bench.engines.start ENGINE MODEL BACKEND THREADS

Prints a `Started` as JSON with the token. Each engine's imports are its own.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass

from app.bench.engines.case import EngineName
from app.rss import peak_rss

_PROMPT = "hi"


@dataclass(frozen=True, kw_only=True)
class Started:
    """load_s: from a path to a model, imports apart. kv_bytes: what the cache has allocated."""

    backend: str
    threads: int
    load_s: float
    kv_bytes: int
    peak_rss_bytes: int


def main() -> int:
    """Start the engine; a reason why it does not is one line and exit code 1."""
    engine, model, backend, threads = sys.argv[1:]
    if EngineName(engine) is EngineName.EMBER:
        return _ember(model, backend)
    return _llama_cpp(model, int(threads))


def _ember(model: str, name: str) -> int:
    from app.engine import Engine, Request
    from kvcache import Backend, CacheConfig
    from kvcache.errors import EmberError
    from kvcache.native.library import library
    from models import load

    try:
        began = time.perf_counter()
        loaded = load(model, backend=Backend(name))
        load_s = time.perf_counter() - began
        engine = Engine(loaded, CacheConfig(backend=Backend(name)))
        ids = loaded.tokenizer.encode(_PROMPT)
        list(engine.generate(Request(prompt=ids, max_tokens=1)))
    except EmberError as error:
        print(error, file=sys.stderr)
        return 1
    backend = engine.plan.backend
    threads = library().threads if backend is Backend.CPU else 0
    _hold(backend.value, threads, load_s, engine.stats().allocated_bytes)
    return 0


def _llama_cpp(model: str, threads: int) -> int:
    try:
        import llama_cpp
    except ImportError as error:
        print(f"pip install llama-cpp-python for --peers ({error})", file=sys.stderr)
        return 1
    from app.bench.engines.llama_cpp_bytes import kv_bytes
    from app.bench.environment import physical_cores

    threads = threads or physical_cores()
    began = time.perf_counter()
    llama = llama_cpp.Llama(
        model, n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1, verbose=False
    )
    load_s = time.perf_counter() - began
    llama.eval(llama.tokenize(_PROMPT.encode()))
    backend = "gpu" if llama_cpp.llama_supports_gpu_offload() else "cpu"
    _hold(backend, threads, load_s, kv_bytes(llama.metadata, "f16", llama.n_ctx()))
    return 0


def _hold(backend: str, threads: int, load_s: float, kv_bytes: int) -> None:
    """Say what started, and wait; the caller's model stays in memory."""
    found = Started(
        backend=backend,
        threads=threads,
        load_s=load_s,
        kv_bytes=kv_bytes,
        peak_rss_bytes=peak_rss(),
    )
    print(json.dumps(asdict(found)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    sys.exit(main())
