from app.bench.engines.case import Case, EngineName
from app.bench.engines.timing import time_case


def test_depth_comes_first_and_is_not_timed() -> None:
    case = Case(
        engine=EngineName.EMBER,
        model="m",
        kv="f16",
        backend="auto",
        threads=0,
        depth=30,
        pp=7,
        tg=3,
    )
    calls: list[tuple[int, int] | None] = []
    pp_s, token_s = time_case(
        case, lambda start, count: calls.append((start, count)), lambda: calls.append(None)
    )
    assert calls == [(0, 30), (30, 7), None, None, None]
    assert pp_s > 0
    assert len(token_s) == 3
