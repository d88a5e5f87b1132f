"""Runs one case in this process: `python -m app.bench.measure CASE` prints a measurement.

Not for people; `bench speed` starts it. Each engine's imports are its own, so that
no other's memory is counted with it.
"""

import json
import sys
from dataclasses import asdict

from app.bench.case import Case, EngineName, Measurement


def main() -> int:
    """Measure the case given as JSON; an ember error is one line and exit code 1."""
    fields = json.loads(sys.argv[1])
    case = Case(**fields | {"engine": EngineName(fields["engine"])})
    try:
        measurement = _llama_cpp(case) if case.engine is EngineName.LLAMA_CPP else _mlx(case)
    except _RefusedError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(measurement)))
    return 0


class _RefusedError(Exception):
    """Why there is no measurement."""


def _llama_cpp(case: Case) -> Measurement:
    try:
        from app.bench import llama_cpp_case
    except ImportError as error:
        raise _RefusedError(f"pip install llama-cpp-python for --peers ({error})") from error
    return llama_cpp_case.measure(case)


def _mlx(case: Case) -> Measurement:
    from app.bench import ember_case, mlx_lm_case
    from kvcache.errors import EmberError

    try:
        if case.engine is EngineName.MLX_LM:
            return mlx_lm_case.measure(case)
        return ember_case.measure(case)
    except EmberError as error:
        raise _RefusedError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
