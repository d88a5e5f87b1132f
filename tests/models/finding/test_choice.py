import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import FetchError
from models.finding.choice import ListedFile, cached_choice, choose, models_among
from models.finding.hub import HubFile, HubModel, hub_folder
from models.finding.source import locate, parse
from tests.models.samples import CONTENT, put_hub

REPO = "o/Nice-3B-GGUF"
MODEL = HubModel(repo=REPO)


def listed(*names: str, size: int = 1000) -> list[ListedFile]:
    return [ListedFile(hub=HubFile(repo=REPO, file=name), size=size) for name in names]


def chosen(names: Sequence[str], quantization: str = "") -> str:
    wanted = replace(MODEL, quantization=quantization)
    return choose(wanted, models_among(listed(*names)), None).file.hub.file


def refused(names: Sequence[str], quantization: str = "") -> str:
    with pytest.raises(FetchError) as caught:
        chosen(names, quantization)
    assert str(caught.value).startswith(f"hf:{REPO}")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Nice-3B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("nice-3b.q4_0.gguf", "Q4_0"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Qwen3-0.6B-IQ4_XS.gguf", "IQ4_XS"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-f16-Q8_0.gguf", "Q8_0"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("BF16/Nice-BF16-00001-of-00002.gguf", "BF16"),
        ("Qwen2.5-1.5B.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_the_quantization_is_read_from_the_name(name: str, quantization: str) -> None:
    assert listed(name)[0].quantization == quantization


ALL = ("n-Q2_K.gguf", "n-Q8_0.gguf", "n-Q4_K_M.gguf", "n-Q3_K_L.gguf", "n-f16.gguf")


def test_four_bits_are_taken_where_nothing_is_said() -> None:
    assert chosen(ALL) == "n-Q4_K_M.gguf"
    assert chosen(("n-Q2_K.gguf", "n-Q8_0.gguf")) == "n-Q8_0.gguf"
    assert chosen(("n.gguf",)) == "n.gguf"


def test_what_does_not_fit_makes_way_for_the_next_and_that_is_said() -> None:
    files = models_among(
        [
            *listed("n-Q4_K_M.gguf", size=400),
            *listed("n-Q3_K_L.gguf", size=300),
            *listed("n-Q2_K.gguf", size=200),
        ]
    )
    choice = choose(MODEL, files, 350)
    assert choice.file.hub.file == "n-Q3_K_L.gguf"
    assert "n-Q3_K_L.gguf of 3 files is taken, as Q4_K_M does not fit" in choice.because
    with pytest.raises(FetchError, match=r"none of its files fits.*n-Q2_K.gguf"):
        choose(MODEL, files, 100)
    assert choose(replace(MODEL, quantization="Q4_K_M"), files, 100).file.size == 400


@pytest.mark.parametrize("wish", ["Q8_0", "q8_0"])
def test_a_quantization_may_be_named_in_any_case(wish: str) -> None:
    assert chosen(ALL, wish) == "n-Q8_0.gguf"


def test_the_mark_of_varying_layers_may_be_left_out() -> None:
    names = ("n-UD-Q4_K_XL.gguf", "n-Q4_K_M.gguf")
    assert chosen(names, "Q4_K_XL") == chosen(names, "ud-q4_k_xl") == "n-UD-Q4_K_XL.gguf"


def test_a_quantization_that_is_not_there_names_those_that_are() -> None:
    assert "has no Q5_0; it has Q4_K_M, Q8_0" in refused(("n-Q8_0.gguf", "n-Q4_K_M.gguf"), "q5_0")


def test_what_is_beside_a_model_is_left_out() -> None:
    beside = ("mmproj-n-f16.gguf", "n.imatrix.gguf", "README.md", "imatrix.dat", "n-Q8_0.gguf")
    assert chosen(beside) == "n-Q8_0.gguf"
    assert "has no GGUF file" in refused(beside[:4])


def test_of_several_models_one_is_to_be_named() -> None:
    names = ("a-Q8_0.gguf", "a-Q4_0.gguf", "b-Q8_0.gguf")
    assert re.search(r"holds 2 models: name a file, hf:.*gguf or hf:", refused(names))
    assert "2 files are Q8_0: name one" in refused(names, "Q8_0")
    assert chosen(names, "Q4_0") == "a-Q4_0.gguf"


PARTS = ("big/n-Q8_0-00001-of-00002.gguf", "big/n-Q8_0-00002-of-00002.gguf")


def test_a_split_file_counts_once_and_is_refused_with_what_to_do() -> None:
    (whole,) = models_among(listed(*PARTS[::-1]))
    assert (whole.hub.file, whole.size, whole.parts) == (PARTS[0], 2000, 2)
    assert "is in 2 parts" in refused(PARTS)
    both = (*PARTS, "n-Q2_K.gguf")
    assert "llama-gguf-split --merge" in refused(both, "Q8_0")
    assert "in one file it has Q2_K" in refused(both, "Q8_0")
    assert chosen(both) == "n-Q2_K.gguf"


def test_what_is_here_is_taken_without_asking(home: Path) -> None:
    assert cached_choice(MODEL) is None
    hub = HubFile(repo=REPO, file="n-Q8_0.gguf")
    path = put_hub(hub_folder(), hub)
    assert locate(f"hf:{REPO}") == locate(f"hf:{REPO}:q8_0") == path
    assert cached_choice(replace(MODEL, quantization="Q4_0")) is None
    best = put_hub(hub_folder(), replace(hub, file="n-Q4_0.gguf"), content=CONTENT * 2)
    assert locate(f"hf:{REPO}") == best
    assert locate(f"hf:{REPO}:Q8_0") == path


@pytest.mark.parametrize(
    "spec", ["hf:o/r", "hf:o/r:Q4_K_M", "hf:o/r@v2", "hf:o/r:Q8_0@refs", "hf:o/r/f.gguf@v2"]
)
def test_specs_of_the_hub_are_read_back(spec: str) -> None:
    assert str(parse(spec)) == spec
