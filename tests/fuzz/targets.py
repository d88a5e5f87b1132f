"""What reads foreign bytes, each with good ones to begin from. A refusal is an EmberError."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import save_prompt_cache

from app.chat import settings
from app.chat.personas import Persona, Personas
from app.engine import Engine
from app.serve import bodies
from app.sessions.chat import Chat, ChatMessage
from app.sessions.export import as_json, from_json
from app.sessions.store import SessionStore
from app.wake.piece import about_in
from app.wake.pieces import needs_of
from kvcache import Backend, CacheConfig, TwoTierKVCache, load_prompt_cache
from models.errors import GGUFError
from models.gguf.decode import decode
from models.gguf.header import read_header, read_leading_metadata
from models.gguf.tensor_types import TensorType
from models.loader import load
from models.native.kernels import kernels
from models.native.packed import Weight
from models.text.builtin_templates import TemplateSource, TemplateText, builtin
from models.text.chat_template import ChatTemplate
from models.text.messages import Message, Role
from models.text.template_process import TemplateLimits, TemplateProcess
from models.text.tokenizer import Tokenizer
from tests.app.conftest import write_tiny
from tests.app.wake.resting import WORDS, answer, engine_of, rest, wake
from tests.fuzz.mutation import mutated, mutated_file
from tests.fuzz.resealed import mutated_cache, mutated_piece
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.models.damaged import outcome
from tests.models.gguf.blocks import random_rows, tensor_of
from tests.models.gguf.raw_gguf import RawGGUF
from tests.scripted_model import write_scripted

_SHAPE = LlamaShape(layers=1, width=256, ffn=256, heads=4, kv_heads=2, vocab=307, context=128)
_FILES = (TensorType.F32, TensorType.F16, TensorType.Q8_0, TensorType.Q4_K, TensorType.Q6_K)
_TEXT = "A naïve 你好 text,\twith  spaces\n<s>[INST] 1234 </s><|im_start|>"
# Of a kept chat, and of the prompt that goes on with it.
_KEPT = 90
_PROMPT = [*WORDS[:_KEPT], 600, 9]
_SECRET = "EMBER_FUZZ_SECRET"  # no template may read the environment, or a file


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of bytes. seeds: good inputs. seconds: what one may take of a processor."""

    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes] = mutated
    seconds: float = 2.0


# -- models' files --


def _read_header(data: bytes) -> None:
    read_leading_metadata(memoryview(data), len(data))
    read_header(memoryview(data), len(data))


def _headers() -> list[bytes]:
    return [RawGGUF().encode(), *(file[: 16 << 10] for file in _models())]


def _answer(data: bytes) -> None:
    """The whole way of a file: its header, tokenizer and tensors, and a few tokens."""
    if not outcome(_written(data, "model.gguf"), Backend.CPU).startswith("answers"):
        raise GGUFError("refused")


@cache
def _models() -> list[bytes]:
    path = _folder() / "seed.gguf"
    tokenizer = sentencepiece_tokenizer(_SHAPE.vocab)
    made = []
    for kind in _FILES:
        types = every_matrix(kind)
        write_llama(path, config=_SHAPE, types=types, tokenizer_metadata=tokenizer, seed=1)
        made.append(path.read_bytes())
    return made


def _decode(data: bytes) -> None:
    """Blocks of some type, by gguf-py and by the kernels: the same numbers, or both refuse."""
    kinds = list(TensorType)
    kind, blocks = kinds[data[0] % len(kinds) if data else 0], data[1:]
    columns = max(kind.block_size, 32)  # as all matrices have, by whole groups
    row_bytes = columns // kind.block_size * kind.block_bytes
    rows = np.frombuffer(blocks, np.uint8)[: len(blocks) // row_bytes * row_bytes]
    if not rows.size:
        raise GGUFError("no whole row")
    rows = np.ascontiguousarray(rows.reshape(-1, row_bytes))
    is_finite = kernels().are_finite(rows, kind)
    try:
        exact = decode(tensor_of(kind, rows))
    except GGUFError:
        assert not is_finite or kind.block_size == 1
        raise
    assert is_finite, "what gguf-py reads as finite is refused"
    ids = np.arange(len(rows), dtype=np.int64)
    np.testing.assert_allclose(kernels().embed(ids, Weight(rows, kind=kind)), exact, rtol=1e-6)


def _blocks() -> list[bytes]:
    return [
        bytes([number]) + random_rows(kind, number, rows=2, blocks=1).tobytes()
        for number, kind in enumerate(TensorType)
    ]


def _tokenize(data: bytes) -> None:
    """A vocabulary, and what it makes of a text and of its own ids."""
    tokenizer = Tokenizer.from_metadata(read_leading_metadata(memoryview(data), len(data)))
    ids = tokenizer.encode(_TEXT)
    assert all(0 <= each < tokenizer.vocab_size for each in ids)
    tokenizer.decode([*ids, *range(min(tokenizer.vocab_size, 512))])


def _vocabularies() -> list[bytes]:
    path = _folder() / "scripted.gguf"
    write_scripted(path, [b"He", b"llo"])
    return [path.read_bytes()[: 16 << 10], _models()[0][: 16 << 10]]


# -- what comes with them --


def _render(data: bytes) -> None:
    """A template, tried as at its first use, and asked for a chat."""
    os.environ[_SECRET] = _SECRET.lower()
    text = TemplateText(
        source=TemplateSource.FILE, text=str(data, "utf-8", "replace"), name="the template"
    )
    template = ChatTemplate(
        text, _tokenizer(), otherwise=TemplateSource.CHATML, process=_template_process()
    )
    asked = [Message(role=Role.SYSTEM, content="brief"), Message(role=Role.USER, content="hello")]
    said = template.render(asked, add_generation_prompt=True)
    assert _SECRET.lower() not in said
    assert "hello" in said, "a question is lost"


@cache
def _tokenizer() -> Tokenizer:
    file = _vocabularies()[0]
    return Tokenizer.from_metadata(read_leading_metadata(memoryview(file), len(file)))


@cache
def _template_process() -> TemplateProcess:
    return TemplateProcess(TemplateLimits(cpu_seconds=0.5, wall_seconds=20))


def _templates() -> list[bytes]:
    escapes = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}",
        "{{ cycler.__init__.__globals__.os.environ }}{{ messages }}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{{ 'x' * 10**9 }}{{ messages|map(attribute='content')|list }}",
        "{{ raise_exception('no') }}",
    )
    built_in = (TemplateSource.CHATML, TemplateSource.LLAMA2, TemplateSource.GEMMA)
    return [*(builtin(each).text.encode() for each in built_in), *map(str.encode, escapes)]


# -- what ember itself has written --


def _open_chats(data: bytes) -> None:
    """A database of chats: all that it lists, and one chat more."""
    path = _written(data, "chats.db")
    for beside in _folder().glob("chats.db*"):
        if beside != path:
            beside.unlink()
    with closing(SessionStore.open(path)) as store:
        for summary in store.chats():
            store.load(summary.id)
        store.chats(search="hel")
        store.save(_chat())


def _chat() -> Chat:
    said = [ChatMessage(role=Role.USER, text="hello"), ChatMessage(role=Role.ASSISTANT, text="yes")]
    return Chat(title="A title", model="m", system="s", sampling={"temp": 0.5}, messages=said)


def _databases() -> list[bytes]:
    path = _folder() / "seed.db"
    with closing(SessionStore.open(path)) as store:
        for _ in range(3):
            store.save(_chat())
    return [path.read_bytes()]


def _import_chat(data: bytes) -> None:
    with closing(SessionStore.in_memory()) as store:
        store.save(from_json(str(data, "utf-8", "replace")))
        store.load(store.chats()[0].id)


def _load_settings(data: bytes) -> None:
    path = _written(data, "settings.toml")
    settings.load(path)
    settings.change(path, {"temp": 0.5})
    assert settings.load(path)[0].temp == 0.5


def _settings() -> list[bytes]:
    path = _folder() / "seed.toml"
    settings.change(path, {"temp": 0.5, "model": "m", "seed": 7, "kv": "q8/q4", "panes": False})
    return [path.read_bytes()]


def _load_personas(data: bytes) -> None:
    personas = Personas(_written(data, "prompts.toml"))
    personas.all()
    personas.save(Persona(name="brief", system="s"))
    personas.get("brief")


def _personas() -> list[bytes]:
    path = _folder() / "seed-prompts.toml"
    Personas(path).save(Persona(name="a b", text="t", system="s\n", sampling={"temp": 0.5}))
    return [path.read_bytes()]


def _load_cache(data: bytes) -> None:
    for each in load_prompt_cache(_written(data, "saved.safetensors")):
        q, k, v = (mx.ones((1, heads, 1, 32)) for heads in (2, 1, 1))
        mx.eval(each.attend(q, k, v, scale=0.2))


def _caches() -> list[bytes]:
    path, made = _folder() / "seed.safetensors", []
    for length in (5, 90, 200):
        config = CacheConfig(max_tokens=128, hot=16, sinks=3, block=32, backend=Backend.CPU)
        held = TwoTierKVCache.from_config(config)
        held.append(*(mx.random.normal((1, 1, length, 32)) for _ in range(2)))
        save_prompt_cache(str(path), [held])
        made.append(path.read_bytes())
    return made


def _wake_by_piece(data: bytes) -> None:
    """A kept chat whose rest is this: an engine answers as if it were whole, or not there."""
    needs_of(data)
    folder, rest, engine = _folder() / "kept", _rest_name(), _engine()
    for name, piece in _pieces().items():
        (folder / name).write_bytes(data if name == rest else piece)
    engine.forget()
    reached = wake(engine, folder, _PROMPT)
    assert answer(engine, _PROMPT, 1).reused_tokens == reached
    if (folder / rest).exists():
        about_in(data)


@cache
def _engine() -> Engine:
    path = write_tiny(_folder() / "tiny.gguf")
    return engine_of(load(path, backend=Backend.CPU), Backend.CPU)


@cache
def _pieces() -> Mapping[str, bytes]:
    """What is kept of a chat, by name."""
    folder, engine = _folder() / "kept", _engine()
    answer(engine, WORDS[:_KEPT], 1)
    rest(engine, folder)
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _rest_name() -> str:
    return next(name for name in _pieces() if ".rest." in name)


# -- what clients of a server say --


def _read_request(data: bytes) -> None:
    body = bodies.read(data)
    (bodies.chat if "messages" in body else bodies.text)(body)


def _requests() -> list[bytes]:
    function = {"name": "f", "parameters": {"type": "object"}}
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chat = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        "tools": [{"type": "function", "function": function}],
        "stop": ["a", "b"],
        "seed": 3,
        "logit_bias": {"5": -1},
        "stream_options": {"include_usage": True},
    }
    text = {"prompt": "once", "max_tokens": 5, "logprobs": 2, "n": 1, "temperature": 0.5}
    return [json.dumps(each).encode() for each in (chat, text, {"prompt": [1, 2]})]


# -- files --


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ember-fuzz-"))


def _written(data: bytes, name: str) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


TARGETS: Mapping[str, Target] = {
    "header": Target(read=_read_header, seeds=_headers, mutate=mutated_file),
    "model": Target(read=_answer, seeds=_models, mutate=mutated_file),
    "blocks": Target(read=_decode, seeds=_blocks),
    "tokenizer": Target(read=_tokenize, seeds=_vocabularies, mutate=mutated_file),
    "template": Target(read=_render, seeds=_templates, seconds=30),
    "chats": Target(read=_open_chats, seeds=_databases),
    "export": Target(read=_import_chat, seeds=lambda: [as_json(_chat()).encode()]),
    "settings": Target(read=_load_settings, seeds=_settings),
    "prompts": Target(read=_load_personas, seeds=_personas),
    "cache": Target(read=_load_cache, seeds=_caches, mutate=mutated_cache),
    "request": Target(read=_read_request, seeds=_requests),
    "piece": Target(
        read=_wake_by_piece, seeds=lambda: [_pieces()[_rest_name()]], mutate=mutated_piece
    ),
}
