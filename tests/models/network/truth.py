"""What llama.cpp says of tiny files, how ember opens them, and how far logits are from it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kvcache import Backend, CacheConfig, HotDtype, make_prompt_cache
from models.gguf.tensor_types import TensorType
from models.loader import load
from models.network.llama import Model
from tests.tiny_files import WINDOW, write_tiny


def _files(name: str) -> dict[str, Any]:
    path = Path(__file__).parents[2] / "data" / f"{name}_truth.json"
    files: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["files"]
    return files


TRUTH = _files("architectures")
TRUTH_OF_TYPES = _files("types")


def furthest(truth: dict[str, Any], logits: np.ndarray) -> float:
    """How far log-probabilities are from a prompt's truth, at most.

    logits: [L, vocabulary] of the prompt's last tokens.
    """
    worst = 0.0
    for best in truth["next_token_top20"]:
        row = logits[best["position"] - truth["prompt_tokens"]].astype(np.float64)
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        worst = max(worst, float(np.abs(logprobs[best["ids"]] - best["logprobs"]).max()))
    return worst


def open_tiny(
    folder: Path,
    name: str,
    *,
    kind: TensorType = TensorType.F32,
    backend: Backend = Backend.REFERENCE,
) -> Model:
    """The network of a tiny file, in the context that llama.cpp was given."""
    return opened(write_tiny(folder / f"{name}.gguf", name, kind), backend)


def opened(path: Path, backend: Backend) -> Model:
    """A network in the context that llama.cpp was given."""
    model = load(path, backend=backend).model
    model.set_context(WINDOW)
    return model


def told(
    model: Model, backend: Backend = Backend.REFERENCE
) -> Callable[[Sequence[int]], np.ndarray]:
    """Asks for the logits [L, vocabulary] of the next tokens; all before them are unencoded."""
    config = CacheConfig(max_tokens=WINDOW, hot=WINDOW, hot_dtype=HotDtype.F32, backend=backend)
    cache = make_prompt_cache(model, config)
    return lambda ids: np.asarray(model(mx.array([list(ids)]), cache))[0]
