"""How often a generated token is waited for, counted where MLX is asked to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from app.bench.engines import ember_case, mlx_lm_case, tuning
from app.bench.engines.case import Case, EngineName, MlxLmSetting
from app.bench.engines.queued import QueuedTokens
from kvcache import Backend, CacheConfig, CachePlan, HotDtype, make_prompt_cache
from models import load
from models.network.llama import Model

CASE = Case(
    engine=EngineName.EMBER,
    model="m",
    kv="f16",
    backend="reference",
    threads=0,
    depth=0,
    pp=7,
    tg=5,
)


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Model:
    return load(tiny_path, backend=Backend.REFERENCE).model


def ember(_path: Path, model: Model, *, queues: bool) -> ember_case.Run:
    config = CacheConfig(hot_dtype=HotDtype.F32, backend=Backend.REFERENCE, check_finite=False)
    return ember_case.Run(CASE, model, make_prompt_cache(model, config), step=64, queues=queues)


def mlx_lm(path: Path, _model: Model, *, queues: bool) -> mlx_lm_case.Run:
    case = replace(CASE, engine=EngineName.MLX_LM, kv="KVCache")
    return mlx_lm_case.Run(case, MlxLmSetting(), mlx_lm_case.read_weights(str(path)), queues=queues)


@pytest.mark.parametrize("engine", [ember, mlx_lm])
def test_a_token_is_waited_for_once(
    engine: Any, tiny_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine(tiny_path, model, queues=True)
    run.read(0, 7)
    run.advance()
    asked: list[str] = []
    wait: Any = mx.eval
    queue: Any = mx.async_eval

    def waiting(*arrays: Any) -> None:
        asked.append("wait")
        wait(*arrays)

    def queueing(*arrays: Any) -> None:
        asked.append("queue")
        queue(*arrays)

    def read(*_arguments: Any, **_named: Any) -> None:
        pytest.fail("an array is read by numpy, which waits for it")

    monkeypatch.setattr(mx, "eval", waiting)
    monkeypatch.setattr(mx, "async_eval", queueing)
    monkeypatch.setattr(np, "asarray", read)
    monkeypatch.setattr("models.network.llama.on_gpu", lambda: True)
    for _ in range(4):
        run.advance()
    # The next token, then what it writes; then the one before is waited for.
    assert asked == 4 * ["queue", "queue", "wait"]


def test_the_tokens_are_those_of_one_at_a_time() -> None:
    """Each is queued from the one before; `advance` waits for the earlier of two."""
    fed: list[int] = []

    def step(token: mx.array) -> tuple[mx.array, list[mx.array]]:
        fed.append(int(token.item()))
        return token * 2 + 1, []

    tokens = QueuedTokens(step, mx.array([3]))
    assert fed == [3]
    tokens.advance()
    tokens.advance()
    assert fed == [3, 7, 15]


@pytest.mark.parametrize("engine", [ember, mlx_lm])
def test_queued_tokens_are_the_same(engine: Any, tiny_path: Path, model: Model) -> None:
    """The logits after so many tokens, the queued one among them, whichever way they came."""
    queued, single = (engine(tiny_path, model, queues=queues) for queues in (True, False))
    for run in (queued, single):
        run.read(0, 7)
    for _ in range(3):
        queued.advance()
    for _ in range(4):
        single.advance()
    last = queued._queued._last
    assert last.tolist() == mx.argmax(single._logits, axis=-1).tolist()


def test_a_gpu_gets_the_scales_own_dtype() -> None:
    case = replace(CASE, engine=EngineName.MLX_LM, kv="KVCache")
    for on_cpu, dtype in ((True, "float32"), (False, "float16")):
        for setting in tuning.settings_of(case, on_cpu=on_cpu):
            assert isinstance(setting, MlxLmSetting)
            assert setting.dtype == dtype


def test_scales_are_not_widened_for_float16(tiny_path: Path) -> None:
    theirs: Any = mlx_lm_case.network(mlx_lm_case.read_weights(str(tiny_path)), mx.float16)
    assert theirs.model.embed_tokens.scales.dtype == mx.float16
    assert theirs(mx.array([[5, 3]])).dtype == mx.float16


def test_no_token_waits_for_the_compiler(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are warmed up as at a load; where they do not run the row says what did."""
    warmed: list[tuple[CachePlan, int]] = []

    def warm_up(plan: CachePlan, *, group: int, **_: Any) -> CachePlan:
        warmed.append((plan, group))
        return replace(plan, backend=Backend.REFERENCE)

    monkeypatch.setattr(ember_case, "warm_up", warm_up)
    found = ember_case.measure(replace(CASE, model=str(tiny_path), backend="auto", depth=5))
    ((plan, group),) = warmed
    assert (plan.kv, group) == ("f16", 3)
    assert found.backend == "reference"
