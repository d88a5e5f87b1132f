"""What each tiny file says, said otherwise, misses the truth: no switch is untested."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import loader
from models.errors import GGUFError
from models.gguf.header import TensorInfo
from models.gguf.metadata import Metadata
from models.network import shapes
from models.network.config import NetworkConfig
from models.network.llama import Model
from models.network.shapes import check_tensors
from models.network.switches import Switches
from models.network.weights import Weights
from tests.models.network.truth import TRUTH, furthest, open_tiny, told
from tests.tiny_files import PROMPTS, TINY, prompt

LLAMA = Switches()
LONGEST = len(PROMPTS) - 1
MISSED = 0.02
# On these it depends which tensors there are: set otherwise, they do not fit the file.
OF_TENSORS = ("pre_norms", "fused")
# Of a configuration, what it would be without the file's word, or with another's.
OTHERWISE: dict[str, Callable[[NetworkConfig], Any]] = {
    "norm_eps": lambda config: config.norm_eps / 10,
    "rope_base": lambda config: 2 * config.rope_base,
    "rope_dims": lambda config: config.head_dim,
    "rope_factor": lambda config: 1.0,
    "rope_magnitude": lambda config: 1.0,
    "yarn": lambda config: None,
}


def _config(name: str) -> NetworkConfig:
    said = Metadata({"general.architecture": TINY[name].architecture})
    for key, value in TINY[name].metadata().items():
        said[key] = value if isinstance(value, bool | int | float | str) else np.array(value)
    return NetworkConfig.from_metadata(said)


CONFIGS = {name: _config(name) for name in TINY}


def _as_llama(name: str, switch: str) -> Any:
    """A switch as Llama has it; a window, which counts only with its layers, as another."""
    window = CONFIGS[name].switches.window
    return window + 1 if switch == "window" and window else getattr(LLAMA, switch)


def _switches(name: str) -> Iterator[tuple[str, Any]]:
    """Those that are not as Llama has them."""
    for each in fields(Switches):
        value = getattr(CONFIGS[name].switches, each.name)
        if value != getattr(LLAMA, each.name):
            yield each.name, value


def _others(name: str) -> Iterator[tuple[str, Any]]:
    """What else the network's mathematics takes from its file."""
    config = CONFIGS[name]
    turns = len(config.switches.unturned) < config.layers
    for field, otherwise in OTHERWISE.items():
        fits = field != "rope_dims" or not TINY[name].vectors
        value = getattr(config, field)
        if fits and (turns or "rope" not in field) and otherwise(config) != value:
            yield field, value


def _optional(name: str) -> Iterator[tuple[str, Any]]:
    """Kinds of tensors that the network does without where a file has none."""
    shape = TINY[name]
    yield from ((f"{kind}.bias", ()) for kind in shape.biases)
    unused = {"phi3-long": "rope_factors_short.weight", "phi3-short": "rope_factors_long.weight"}
    yield from (item for item in shape.vectors.items() if item[0] != unused.get(name))
    if not shape.tied:
        yield "output.weight", ()


def _each(of_file: Callable[[str], Iterator[tuple[str, Any]]]) -> list[tuple[str, str]]:
    """Names of files with names of what they say, once for each value and architecture."""
    found = {
        (TINY[name].architecture, what, str(value)): (name, what)
        for name in reversed(TINY)
        for what, value in of_file(name)
    }
    return list(found.values())[::-1]


SWITCHES, OTHERS, OPTIONAL = _each(_switches), _each(_others), _each(_optional)


@pytest.fixture
def missed_by(tmp_path: Path) -> Callable[[str], float]:
    """How far the log-probabilities of a file's longest prompt are from the truth's."""

    def of(name: str) -> float:
        logits = told(open_tiny(tmp_path, name))(prompt(PROMPTS[LONGEST]))
        return furthest(TRUTH[name]["prompts"][LONGEST], logits)

    return of


@pytest.fixture
def otherwise(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes networks with another configuration than that by which their tensors were read."""

    def change(**changes: Any) -> None:
        def made(config: NetworkConfig, weights: Weights) -> Model:
            return Model(replace(config, **changes), weights)

        monkeypatch.setattr(loader, "Model", made)

    return change


def test_every_switch_is_set_in_a_file() -> None:
    assert {switch for _, switch in SWITCHES} == {each.name for each in fields(Switches)}
    assert {field for _, field in OTHERS} == set(OTHERWISE)


@pytest.mark.parametrize(
    ("name", "switch"), [each for each in SWITCHES if each[1] not in OF_TENSORS]
)
def test_a_switch_as_llama_has_it(
    name: str, switch: str, missed_by: Callable[[str], float], otherwise: Callable[..., None]
) -> None:
    otherwise(switches=replace(CONFIGS[name].switches, **{switch: _as_llama(name, switch)}))
    assert missed_by(name) > MISSED


@pytest.mark.parametrize(("name", "switch"), [each for each in SWITCHES if each[1] in OF_TENSORS])
def test_a_switch_that_does_not_fit_the_tensors(
    name: str, switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = replace(CONFIGS[name].switches, **{switch: getattr(LLAMA, switch)})
    changed = replace(CONFIGS[name], switches=switches)
    monkeypatch.setattr(NetworkConfig, "from_metadata", lambda _metadata: changed)
    with pytest.raises(GGUFError, match="tensor"):
        open_tiny(tmp_path, name)


@pytest.mark.parametrize(("name", "field"), OTHERS)
def test_another_configuration(
    name: str, field: str, missed_by: Callable[[str], float], otherwise: Callable[..., None]
) -> None:
    otherwise(**{field: OTHERWISE[field](CONFIGS[name])})
    assert missed_by(name) > MISSED


@pytest.mark.parametrize(("name", "kind"), OPTIONAL)
def test_without_a_tensor(
    name: str, kind: str, missed_by: Callable[[str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*arguments: Any, **named: Any) -> dict[str, TensorInfo]:
        entries = check_tensors(*arguments, **named)
        return {each: entries[each] for each in entries if not f".{each}".endswith(f".{kind}")}

    monkeypatch.setattr(shapes, "check_tensors", without)
    assert missed_by(name) > MISSED
