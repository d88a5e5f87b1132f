"""Runs cases in this process: `python -m app.bench.engines.measure CASE...` prints a line for each.

Not for people; `bench speed` starts it. Cases of one call differ in their setting alone. A
line is a measurement as JSON, or null where a setting cannot run. Each engine's imports are its
own, so that no other's memory is counted with it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from app.bench.engines.case import Case, EngineName, Measurement


def main() -> int:
    """Measure the cases given as JSON; an ember error is one line and exit code 1."""
    cases = [Case.from_json(json.loads(text)) for text in sys.argv[1:]]
    try:
        for found in _measure(cases):
            print(json.dumps(found and asdict(found)), flush=True)
    except _RefusedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class _RefusedError(Exception):
    """Why there is no measurement."""


def _measure(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    if cases[0].engine is EngineName.LLAMA_CPP:
        return _llama_cpp(cases)
    return _mlx(cases)


def _llama_cpp(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    try:
        from app.bench.engines import llama_cpp_case
    except ImportError as error:
        raise _RefusedError(f"pip install llama-cpp-python for --peers ({error})") from error
    return llama_cpp_case.measure(cases)


def _mlx(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    from app.bench.engines import ember_case, mlx_lm_case
    from kvcache.errors import EmberError

    try:
        if cases[0].engine is EngineName.MLX_LM:
            yield from mlx_lm_case.measure(cases)
        else:
            yield from map(ember_case.measure, cases)
    except EmberError as error:
        raise _RefusedError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
