"""Ask llama.cpp what tiny files say, and write it to tests/data: *_truth.json.

    python -m tests.make_truth

Of a file for each architecture, and of one for each tensor type, which gguf-py decodes for it.
Weights and cache in float32, without flash attention. Needs llama-cpp-python, which no
other part of ember does.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from tests import architectures, pure_files
from tests.models.gguf.blocks import weights_of
from tests.tiny_files import ANSWER, PROMPTS, SEED, TINY, WINDOW, prompt, write_tiny

OUT = Path(__file__).parent / "data"
_LAST = 3  # positions of each prompt
_BEST = 20  # tokens of each position
_DIGITS = 6

Logits = npt.NDArray[np.float64]
# Ids, and after how many of them, counted from the end, logits are wanted -> a row for each.
Ask = Callable[[Sequence[int], int], Logits]


def main() -> None:
    """Write all of them, a line for each prompt."""
    if find_spec("llama_cpp") is None:
        sys.exit(
            "llama-cpp-python is not here, and truth is llama.cpp's: "
            f"{sys.executable} -m pip install llama-cpp-python"
        )
    import llama_cpp

    silent = llama_cpp.llama_log_callback(_ignore)  # must live as long as it may be called
    llama_cpp.llama_log_set(silent, None)
    made_by = f"llama.cpp through llama-cpp-python {llama_cpp.__version__}, all in float32"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        of_architectures = {name: _of_network(name, path) for name in TINY}
        of_types = {kind.name: _of_type(kind, path) for kind in TensorType}
    for name, files in (("architectures", of_architectures), ("types", of_types)):
        out = OUT / f"{name}_truth.json"
        out.write_text(_document(made_by, files), encoding="utf-8")
        print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def _of_network(name: str, path: Path) -> dict[str, Any]:
    write_tiny(path, name)
    print(name)
    found = architectures.fingerprint(TINY[name], SEED)
    return {"fingerprint": found, "prompts": [_of_prompt(path, length) for length in PROMPTS]}


def _of_type(kind: TensorType, path: Path) -> dict[str, Any]:
    pure_files.write_pure(path, kind, decoded=lambda data: weights_of(kind, data))
    print(kind.name)
    prompts = [_of_prompt(path, pure_files.PROMPT)]
    return {"fingerprint": pure_files.fingerprint(kind), "prompts": prompts}


def _of_prompt(path: Path, length: int) -> dict[str, Any]:
    with opened(path) as ask:
        return _of_answer(ask, prompt(length))


def _of_answer(ask: Ask, ids: list[int]) -> dict[str, Any]:
    logits = ask(ids, _LAST)
    positions = [_best(row, len(ids) - _LAST + i) for i, row in enumerate(logits)]
    greedy: list[int] = []
    margins: list[float] = []
    row = logits[-1]
    for _ in range(ANSWER):
        second, first = np.argsort(row)[-2:].tolist()
        greedy.append(first)
        margins.append(round(row[first] - row[second], _DIGITS))
        row = ask([first], 1)[0]
    return {
        "prompt_tokens": len(ids),
        "next_token_top20": positions,
        "greedy_ids": greedy,
        "greedy_top1_minus_top2_logit": margins,
    }


def _best(row: Logits, position: int) -> dict[str, Any]:
    ids = np.argsort(-row, kind="stable")[:_BEST]
    logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
    return {
        "position": position,
        "ids": ids.tolist(),
        "logprobs": [round(value, _DIGITS) for value in logprobs[ids].tolist()],
    }


@contextmanager
def opened(path: Path, window: int = WINDOW) -> Iterator[Ask]:
    """A file in llama.cpp with an empty cache, to which each question appends."""
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        sys.exit(f"{path}: llama.cpp does not open it")
    context = llama_cpp.llama_init_from_model(model, _in_float32(window))
    count = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    asked = 0

    def ask(ids: Sequence[int], last: int) -> Logits:
        nonlocal asked
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, asked + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= len(ids) - last
        if llama_cpp.llama_decode(context, batch):
            sys.exit(f"{path}: llama.cpp could not compute {len(ids)} tokens")
        asked += len(ids)
        rows = [llama_cpp.llama_get_logits_ith(context, i - last) for i in range(last)]
        found = np.array([np.ctypeslib.as_array(row, (count,)) for row in rows], np.float64)
        llama_cpp.llama_batch_free(batch)
        return found

    yield ask
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def _in_float32(window: int) -> Any:
    import llama_cpp

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = window
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.flash_attn_type = 0  # off
    parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
    return parameters


def _document(made_by: str, files: dict[str, Any]) -> str:
    """JSON with a line for each prompt, so that a change can be read."""
    lines = [f'{{"made_by": {json.dumps(made_by)}, "files": {{']
    for name, file in files.items():
        prompts = ",\n   ".join(json.dumps(each) for each in file["prompts"])
        end = "," if name != list(files)[-1] else ""
        fields = f'"fingerprint": {json.dumps(file["fingerprint"])}, "prompts": ['
        lines.append(f" {json.dumps(name)}: {{{fields}\n   {prompts}]}}{end}")
    return "\n".join([*lines, "}}", ""])


def _ignore(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp's log, which nobody reads."""


if __name__ == "__main__":
    main()
