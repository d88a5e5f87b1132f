"""What becomes of files that somebody has damaged: each is refused in a line, or answers.

    python -m tests.models.damaged header|weights SAMPLES [--seed N] [--backend cpu|reference]

`header` damages the default model's header before weights of zeros, `weights` any byte of tiny
files of every type. One line a sample; any other end than a refusal or an answer ends the process.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache import Backend, EmberError
from models.finding.fetch import fetch
from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from models.loader import LoadedModel, load
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.models.gguf.blocks import Bytes, random_rows

SHAPE = LlamaShape(layers=1, width=256, ffn=256, heads=4, kv_heads=2, vocab=307, context=512)
MOST_CHANGES, MOST_BYTES = 4, 40
# Where most of what the rest depends on lies, of a header: in bytes from its beginning and its end.
FIRST, LAST = 1 << 10, 16 << 10
WEIGHTS = 100 << 20  # bytes, that take no disk


def main() -> None:
    """Damage files and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("header", "weights"))
    parser.add_argument("samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", type=Backend, default=Backend.CPU)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = _headers if arguments.what == "header" else _tiny_files
        seeds = range(arguments.seed, arguments.seed + arguments.samples)
        for seed, path in zip(seeds, files(Path(folder)), strict=False):
            damage(path, np.random.default_rng(seed))
            if arguments.what == "header":
                os.truncate(path, path.stat().st_size + WEIGHTS)
            print(f"{seed}: {outcome(path, arguments.backend)}", flush=True)


def damage(path: Path, rng: np.random.Generator) -> None:
    """Change a file at a few places."""
    data = path.read_bytes()
    for _ in range(rng.integers(1, MOST_CHANGES)):
        data = _changed(data, rng)
    path.write_bytes(data)


def _changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A bit flipped, bytes made others, cut out or put in, or the end taken off."""
    places = (0, FIRST), (len(data) - LAST, len(data)), (0, len(data))
    at, count = int(rng.integers(*rng.choice(places))), int(rng.integers(1, MOST_BYTES))
    before, after = data[:at], data[at + count :]
    noise = rng.integers(0, 256, count, np.uint8).tobytes()
    match rng.choice(5, p=(0.45, 0.3, 0.1, 0.1, 0.05)):
        case 0:
            return before + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        case 1:
            return before + noise + after
        case 2:
            return before + after
        case 3:
            return before + noise + data[at:]
    return data[: at + 1]


def outcome(path: Path, backend: Backend) -> str:
    """What is said of a file, without its path, or the ids that it answers."""
    try:
        loaded = load(path, backend=backend)
        return f"answers {_answer(loaded)}"
    except EmberError as error:
        if "\n" in str(error):
            raise AssertionError(f"an error of several lines: {error}") from error
        return f"refused: {str(error).removeprefix(f'{path}: ')}"


def _answer(loaded: LoadedModel) -> list[int]:
    """A few greedy ids; none where the network gives no numbers."""
    model, ids = loaded.model, [1, 2, 3]
    cache = model.make_cache()
    for _ in range(3):
        logits = model(mx.array([ids[-3:] if len(ids) == 3 else ids[-1:]]), cache)[0, -1]
        ids.append(int(mx.argmax(logits).item()))
    loaded.tokenizer.decode(ids)
    return ids[3:]


def _headers(folder: Path) -> Iterator[Path]:
    """The default model's header, again and again; its weights are a hole."""
    whole, path = fetch("smollm2"), folder / "header.gguf"
    with GGUFFile(whole) as file:
        start = min(info.offset for info in file.tensors.values())
    while True:
        with whole.open("rb") as source:
            path.write_bytes(source.read(start))
        yield path


def _tiny_files(folder: Path) -> Iterator[Path]:
    """A file of each type in turn."""
    kept = {kind: _write_tiny(folder / f"{kind.name}.kept", kind) for kind in TensorType}
    while True:
        for kind, path in kept.items():
            yield Path(shutil.copy(path, folder / f"{kind.name}.gguf"))


def _write_tiny(path: Path, kind: TensorType) -> Path:
    def matrix(_name: str, shape: tuple[int, ...]) -> Bytes:
        rows, columns = shape
        return random_rows(kind, 1, rows=rows, blocks=columns // max(kind.block_size, 32))

    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=1,
        matrix=matrix,
    )
    return path


if __name__ == "__main__":
    main()
