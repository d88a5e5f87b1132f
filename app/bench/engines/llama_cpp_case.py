"""Times llama.cpp through llama-cpp-python, setting by setting.

Nothing of MLX is imported, so that the memory is llama.cpp's alone.
"""

import ctypes
from collections.abc import Iterator, Sequence

import llama_cpp
import numpy as np

from app.bench.engines.case import WARM_UP, Case, LlamaCppSetting, Measurement
from app.bench.engines.llama_cpp_bytes import kv_bytes
from app.bench.engines.timing import time_steps
from app.bench.environment import physical_cores
from app.rss import peak_rss

_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
_BATCH = 512  # of a call; longer micro-batches need longer ones


def measure(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    """Fill the cache to the cases' depth, then read and generate.

    The depth is filled once for all cases of one form of cache, then copied. None where
    llama.cpp refuses a setting.
    """
    filled: dict[bool, ctypes.Array[ctypes.c_uint8]] = {}
    for case in cases:
        setting = case.setting
        assert isinstance(setting, LlamaCppSetting)
        try:
            run = _Run(case, setting)
        except ValueError:  # no context
            yield None
            continue
        run.read(0, min(case.pp, WARM_UP))
        run.llama.reset()
        if setting.flash_attn in filled:
            run.restore(filled[setting.flash_attn])
        elif case.depth:
            run.read(0, case.depth)
            if len(cases) > 1:
                filled[setting.flash_attn] = run.state()
        yield run.measurement()
        run.llama.close()


class _Run:
    """A model and its context. Raises ValueError where llama.cpp makes none."""

    def __init__(self, case: Case, setting: LlamaCppSetting) -> None:
        keys, _, values = case.kv.partition("/")
        self._case = case
        self.llama = llama_cpp.Llama(
            case.model,
            n_ctx=case.window,
            n_batch=max(_BATCH, setting.n_ubatch),
            n_ubatch=setting.n_ubatch,
            n_threads=setting.n_threads,
            n_threads_batch=setting.n_threads,
            n_gpu_layers=-1,
            flash_attn=setting.flash_attn,
            type_k=_TYPES[keys],
            type_v=_TYPES[values or keys],
            verbose=False,
        )

    def read(self, start: int, count: int) -> None:
        """Prompt tokens from position `start` on."""
        self.llama.eval(self._case.tokens(start, count, self.llama.n_vocab()))

    def measurement(self) -> Measurement:
        """Of the prompt and the tokens after the depth, which is held."""
        pp_s, token_s = time_steps(self._case, self.read, self._advance)
        return Measurement(
            backend="gpu" if llama_cpp.llama_supports_gpu_offload() else "cpu",
            # What it may take; what it does take, the setting says.
            threads=self._case.threads or physical_cores(),
            pp_s=pp_s,
            token_s=token_s,
            kv_bytes=kv_bytes(self.llama.metadata, self._case.kv, self._case.window - 1),
            peak_rss_bytes=peak_rss(),
        )

    def state(self) -> ctypes.Array[ctypes.c_uint8]:
        """The cache's contents."""
        size = llama_cpp.llama_state_seq_get_size(self.llama.ctx, 0)
        memory: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.llama.ctx, memory, size, 0)
        return memory

    def restore(self, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Hold what another context held that had the same form."""
        if not llama_cpp.llama_state_seq_set_data(self.llama.ctx, state, len(state), 0):
            raise RuntimeError("llama.cpp does not take its own state back")
        self.llama.n_tokens = self._case.depth

    def _advance(self) -> None:
        # The bare argmax: the binding's own sampler costs some milliseconds of Python.
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(self.llama.ctx, -1), shape=(self.llama.n_vocab(),)
        )
        self.llama.eval([int(np.argmax(logits))])
