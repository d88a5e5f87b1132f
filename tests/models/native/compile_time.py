"""What compiling the CPU kernels costs: `python -m tests.models.native.compile_time [TYPE...]`.

Processor time, of an empty cache: of what a first answer of a file with these types waits for, and
of what is compiled beside it for the default codecs. On two quiet cores the first half is waited
for, as two compilers run at a time.
"""

import argparse
import os
import resource
import tempfile
import time

from kvcache import Backend, CacheConfig, codec
from kvcache.native import build
from kvcache.native.build import Sources
from models.gguf.tensor_types import TensorType
from models.native.kernels import missing, missing_codings


def seconds(found: list[Sources]) -> float:
    """Of processor time that compiling takes."""
    before = _children()
    build.build(found, lambda: False)
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    # As SmolLM2's file has them.
    names = [kind.name for kind in TensorType]
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"of {', '.join(names)}")
    kinds = [TensorType[name] for name in parser.parse_args().types or ("Q4_1", "Q8_0")]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EMBER_CACHE"] = folder
        codecs = map(codec, CacheConfig().codecs)
        for label, found in (
            ("before the first answer", missing(Backend.CPU, kinds)),
            ("beside it", missing_codings(Backend.CPU, codecs)),
        ):
            began = time.monotonic()
            taken = seconds(found)
            print(f"{label}: {taken:.1f} s of processor time, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
