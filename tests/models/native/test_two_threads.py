"""Two threads that call the kernels at once take turns, and give what each gives alone."""

import threading
from pathlib import Path

import mlx.core as mx

from kvcache import Backend, CacheConfig, make_prompt_cache
from models import load
from tests.patience import patience
from tests.tiny_files import write_tiny


def _greedy(path: Path, seed: int) -> list[int]:
    """What follows a prompt that is the seed's own."""
    model = load(path, backend=Backend.CPU).model
    cache = make_prompt_cache(model, CacheConfig(hot=16, block=16, backend=Backend.CPU))
    ids, said = [5 + (7 * at + seed) % 200 for at in range(60)], list[int]()
    with mx.stream(mx.new_stream(mx.cpu)):
        for _ in range(40):
            ids = [int(mx.argmax(model(mx.array([ids]), cache)[0, -1]))]
            said += ids
    return said


def test_callers_take_turns(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    alone = {seed: _greedy(path, seed) for seed in range(3)}
    both = dict[int, list[int]]()

    def chat(seed: int) -> None:
        both[seed] = _greedy(path, seed)

    # A thread that never ends must not keep the others.
    threads = [threading.Thread(target=chat, args=(seed,), daemon=True) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(20))
    assert both == alone
