"""Built-in templates: what they render, which fits a file, and templates that users give."""

from pathlib import Path

import pytest

from models.errors import ChatTemplateError
from models.gguf.metadata import Metadata, MetadataValue
from models.text.builtin_templates import TemplateSource, builtin_source, given_template
from models.text.chat_template import ChatTemplate
from models.text.template_process import TemplateProcess
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.test_chat_template import TALK
from tests.models.text.vocabularies import byte_level, with_scores


@pytest.fixture
def tokenizer() -> Tokenizer:
    special = dict.fromkeys(("<s>", "</s>", "<|im_start|>", "<|im_end|>"), TokenType.CONTROL)
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    return Tokenizer.from_metadata(byte_level(special=special, changes=ids))


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess()


def test_chatml_where_the_vocabulary_has_it(tokenizer: Tokenizer) -> None:
    chat = ChatTemplate.from_metadata(Metadata({"general.name": "TinyLlama"}), tokenizer)
    assert chat.source is TemplateSource.CHATML
    assert chat.render(TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not chat.render(TALK[:2], add_generation_prompt=False).endswith("assistant\n")


@pytest.mark.parametrize("name", ["tinyllama_tinyllama-1.1b-chat-v1.0", "TinyLlama 1.1B Chat"])
def test_zephyr_for_tinyllama(name: str) -> None:
    chat = builtin(name)
    assert chat.source is TemplateSource.ZEPHYR
    assert chat.render(TALK) == (
        "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("name", ["LLaMA v2", "Llama-2-7b-chat-hf", "codellama_CodeLlama-7b"])
def test_llama_2(name: str) -> None:
    chat = builtin(name)
    assert chat.source is TemplateSource.LLAMA2
    assert chat.render(TALK) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]"
    )


@pytest.mark.parametrize("name", ["OLMo 2 1124 7B Instruct", "OLMo-2-0425-1B-Instruct"])
def test_olmo_2(name: str) -> None:
    chat = builtin(name)
    assert chat.source is TemplateSource.OLMO2
    assert chat.render(TALK[:3], add_generation_prompt=False) == (
        "<s><|system|>\nBe brief.\n<|user|>\n Hi \n<|assistant|>\nHello</s>"
    )


@pytest.mark.parametrize("name", ["Mystery 7B", None, 3])
def test_a_guess_where_nothing_fits(name: MetadataValue | None) -> None:
    assert builtin(name).source is TemplateSource.GUESS


def builtin(name: MetadataValue | None) -> ChatTemplate:
    keys = with_scores({"a": -1.0})
    if name is not None:
        keys["general.name"] = name
    return ChatTemplate.from_metadata(keys, Tokenizer.from_metadata(keys))


BUILTINS = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello</s>\n"
    "<|user|>\nBye</s>\n<|assistant|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s>"
    "<s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\n Hi  [/INST] Hello</s>[INST] Bye [/INST]",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello"
    "<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\nHello<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|>"
    "<|im_start|>user<|im_sep|> Hi <|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hello<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
    "phi4mini": "<|system|>Be brief.<|end|><|user|> Hi <|end|><|assistant|>Hello<|end|>"
    "<|user|>Bye<|end|><|assistant|>",
    "granite": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|> Hi <|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Hello<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Bye<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "olmo2": "<s><|system|>\nBe brief.\n<|user|>\n Hi \n<|assistant|>\nHello</s>\n"
    "<|user|>\nBye\n<|assistant|>\n",
    "vicuna": "Be brief.\n\nUSER:  Hi \nASSISTANT: Hello</s>\nUSER: Bye\nASSISTANT:",
    "alpaca": "Be brief.\n\n### Instruction:\n Hi \n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
}


# Told from another by the vocabulary or the model's name alone.
ALIKE = {
    TemplateSource.PHI4MINI: TemplateSource.PHI3,
    TemplateSource.OLMO2: TemplateSource.ZEPHYR,
}


@pytest.mark.parametrize("name", BUILTINS)
def test_built_in_templates_by_name(
    tokenizer: Tokenizer, process: TemplateProcess, name: str
) -> None:
    taken = given_template(name.upper())
    assert taken.source.name == name.upper()
    chat = ChatTemplate(taken, tokenizer, otherwise=taken.source, process=process)
    assert chat.render(TALK) == BUILTINS[name]
    # What is unusable and looks like it is replaced by it.
    plain = Tokenizer.from_metadata(with_scores({"a": -1.0}))
    replaced = builtin_source(None, plain, "{% if %}" + BUILTINS[name])
    assert replaced is ALIKE.get(taken.source, taken.source)


def test_every_built_in_template_is_tried_above() -> None:
    names = {source.name.lower() for source in TemplateSource if source.is_builtin} - {"guess"}
    assert names == set(BUILTINS)


@pytest.mark.parametrize(
    ("marks", "source"),
    [
        (("<|im_start|>",), TemplateSource.CHATML),
        (("<|start_header_id|>", "<|eot_id|>"), TemplateSource.LLAMA3),
        (("<start_of_turn>",), TemplateSource.GEMMA),
        (("<|user|>", "<|assistant|>", "<|end|>"), TemplateSource.PHI3),
        (("<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"), TemplateSource.PHI4MINI),
        (("<|im_start|>", "<|im_sep|>", "<|im_end|>"), TemplateSource.PHI4),
        (("<|start_of_role|>", "<|end_of_role|>"), TemplateSource.GRANITE),
        (("[INST]", "[/INST]"), TemplateSource.MISTRAL),
        (("<|eot_id|>",), TemplateSource.ZEPHYR),
    ],
)
def test_the_vocabulary_decides_for_a_built_in_template(
    marks: tuple[str, ...], source: TemplateSource
) -> None:
    vocabulary = Tokenizer.from_metadata(
        byte_level(special=dict.fromkeys(marks, TokenType.CONTROL))
    )
    assert builtin_source("Zephyr 7B", vocabulary) is source


def test_a_template_is_given_as_a_file_or_a_name(tmp_path: Path) -> None:
    path = tmp_path / "chatml"
    path.write_text("{{ 1 }}", encoding="utf-8-sig")
    found = given_template(str(path))
    assert (found.source, found.text) == (TemplateSource.GIVEN, "{{ 1 }}")
    with pytest.raises(ChatTemplateError, match=r"no chat template 'x': .* a file, or .*chatml, "):
        given_template("x")
    with pytest.raises(ChatTemplateError, match=r"cannot read the chat template .*directory"):
        given_template(str(tmp_path))
    path.write_bytes(b"\xff\x00")
    with pytest.raises(ChatTemplateError, match=r"cannot read the chat template .*utf-8"):
        given_template(str(path))
