"""Times llama.cpp through llama-cpp-python, at its best settings: flash attention, batch 512.

Nothing of MLX is imported, so that the memory is llama.cpp's alone.
"""

import llama_cpp
import numpy as np

from app.bench.case import WARM_UP, Case, Measurement
from app.bench.llama_cpp_bytes import kv_bytes
from app.bench.timing import time_case
from app.rss import peak_rss

_BATCH = 512


def measure(case: Case) -> Measurement:
    """Fill the cache to the case's depth, then read and generate."""
    types = {
        "f16": llama_cpp.GGML_TYPE_F16,
        "q8_0": llama_cpp.GGML_TYPE_Q8_0,
        "q4_0": llama_cpp.GGML_TYPE_Q4_0,
    }
    llama = llama_cpp.Llama(
        case.model,
        n_ctx=case.window,
        n_batch=_BATCH,
        n_ubatch=_BATCH,
        n_threads=case.threads or None,
        n_threads_batch=case.threads or None,
        n_gpu_layers=-1,
        flash_attn=True,
        type_k=types[case.kv],
        type_v=types[case.kv],
        verbose=False,
    )
    vocabulary = llama.n_vocab()

    def read(start: int, count: int) -> None:
        llama.eval(case.tokens(start, count, vocabulary))

    def advance() -> None:
        # The bare argmax: the binding's own sampler costs some milliseconds of Python.
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(llama.ctx, -1), shape=(vocabulary,)
        )
        llama.eval([int(np.argmax(logits))])

    read(0, min(case.pp, WARM_UP))
    llama.reset()
    pp_s, token_s = time_case(case, read, advance)
    return Measurement(
        backend="gpu" if llama_cpp.llama_supports_gpu_offload() else "cpu",
        threads=llama.n_threads,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=kv_bytes(llama.metadata, case),
        peak_rss_bytes=peak_rss(),
    )
