"""Names for people: of what files say of themselves, and of what they are called."""

import gguf
import pytest

from models.gguf.metadata import Metadata
from models.title import FILE_TYPES, of_file, quantization, readable, title


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("SmolLM2 135M Instruct", "SmolLM2 135M Instruct"),
        ("LLaMA v2", "LLaMA v2"),
        ("Meta-Llama-3.1-8B-Instruct", "Meta Llama 3.1 8B Instruct"),
        ("tinyllama_tinyllama-1.1b-chat-v1.0", "Tinyllama 1.1B Chat v1.0"),
        ("models/phi3-mini-4k", "Phi3 Mini 4k"),
        ("/home/someone/hub/snapshots/gemma-3-270m-it.gguf/", "Gemma 3 270M it"),
        ("  Two\nlines\t\x1b[2J of \u202eit ", "Two lines [2J of it"),
        ("\u00c9l\u00e9phant 7B", "\u00c9l\u00e9phant 7B"),
        ("GPT2", "GPT2"),
    ],
)
def test_a_name_in_the_metadata_is_made_readable(said: str, shown: str) -> None:
    assert title(Metadata({"general.name": said}), "file") == shown


JUNK = ["", " ", "...", "LLAMA", "HF", "models", "hf", ".", "tmp/out", "\x00", "---"]
JUNK += ["0123456789abcdef0123456789abcdef", "sha256-0123456789ab", "/"]


@pytest.mark.parametrize("said", JUNK)
def test_a_name_that_says_nothing_gives_way_to_the_files(said: str) -> None:
    metadata = Metadata({"general.name": said})
    assert title(metadata, "smollm2-135m-instruct.Q4_1") == "Smollm2 135M Instruct"
    assert title(metadata | {"general.basename": "SmolLM2"}, "x") == "SmolLM2"


@pytest.mark.parametrize("value", [7, True, 1.5, ["a"]])
def test_a_name_that_is_no_text_is_none(value: int | float | list[str]) -> None:
    assert title(Metadata({"general.name": value}), "tiny-model") == "Tiny Model"


@pytest.mark.parametrize(
    ("stem", "shown"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2 135M Instruct"),
        ("Llama-3.3-70B-Instruct-Q4_K_M-00001-of-00002", "Llama 3.3 70B Instruct"),
        ("Qwen3-8B-UD-Q2_K_XL", "Qwen3 8B"),
        ("gemma-3-4b-it-bf16", "Gemma 3 4B it"),
        ("mixtral-8x7b.IQ3_XXS.gguf", "Mixtral 8X7B"),
        ("Q4_K_M", "Q4 K M"),
    ],
)
def test_a_files_name_is_made_readable(stem: str, shown: str) -> None:
    assert readable(stem) == shown


def test_there_is_always_a_name() -> None:
    assert title(Metadata({"general.architecture": "llama"}), "sha256-0123456789abcdef") == "llama"
    assert title(Metadata(), "0123456789abcdef") == "a model"
    assert len(title(Metadata({"general.name": "long " * 1000}), "x")) <= 60


def test_the_title_of_a_file_says_how_its_weights_are_stored() -> None:
    assert of_file("SmolLM2-360M-Instruct-Q4_K_M.gguf") == "SmolLM2 360M Instruct · Q4_K_M"
    assert of_file("model.gguf") == "a model"


def test_types_of_files_are_gguf_pys() -> None:
    theirs = {each.value: each.name for each in gguf.LlamaFileType}
    assert {
        number: theirs[number].removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE")
        for number in FILE_TYPES
    } == FILE_TYPES


@pytest.mark.parametrize("value", [-1, 1024, True, "15", 2**40])
def test_a_type_that_nobody_knows_is_told_by_the_tensors(value: int | str) -> None:
    assert quantization(Metadata({"general.file_type": value}), []) == ""
    assert quantization(Metadata({"general.file_type": 15}), []) == "Q4_K_M"
