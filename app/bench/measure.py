"""Runs one case in this process: `python -m app.bench.measure CASE.json` prints a measurement.

Not for people; `bench speed` starts it.
"""

import json
import sys
from dataclasses import asdict

from app.bench.case import Case, EngineName, Measurement
from kvcache import EmberError


def main() -> int:
    """Measure the case given as JSON; an ember error is one line and exit code 1."""
    fields = json.loads(sys.argv[1])
    case = Case(**fields | {"engine": EngineName(fields["engine"])})
    try:
        print(json.dumps(asdict(_measure(case))))
    except EmberError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _measure(case: Case) -> Measurement:
    match case.engine:
        case EngineName.EMBER:
            from app.bench import ember_case

            return ember_case.measure(case)
        case EngineName.MLX_LM:
            from app.bench import mlx_lm_case

            return mlx_lm_case.measure(case)
        case EngineName.LLAMA_CPP:
            from app.bench import llama_cpp_case

            return llama_cpp_case.measure(case)


if __name__ == "__main__":
    sys.exit(main())
