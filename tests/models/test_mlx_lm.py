"""A file's tokenizer in mlx-lm's own functions: ids, texts and ends are the file's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import batch_generate, generate, stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from kvcache import CacheConfig, CacheError, make_prompt_cache
from models import LoadedModel, load
from models.errors import ChatTemplateError
from models.mlx_lm import tokenizer_of
from models.text.messages import Message, Role, conversation

TEXTS = ["The capital of France is", " spaces  and\nlines", "Grüße, 你好, 🙂 <|im_end|>", ""]


@pytest.fixture(scope="module")
def loaded(smollm2_path: Path) -> LoadedModel:
    return load(str(smollm2_path))


@pytest.fixture(scope="module")
def tokenizer(loaded: LoadedModel) -> TokenizerWrapper:
    return tokenizer_of(loaded)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_the_files(
    loaded: LoadedModel, tokenizer: TokenizerWrapper, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == loaded.tokenizer.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == loaded.tokenizer.encode(
        text, add_special=False
    )
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(mx.array(ids, mx.int32).tolist(), skip_special_tokens=True) == (
        loaded.tokenizer.decode(ids)
    )
    detokenizer, shown = tokenizer.detokenizer, ""
    for id_ in ids:
        detokenizer.add_token(id_)
        shown += detokenizer.last_segment
    detokenizer.finalize()
    assert shown + detokenizer.last_segment == loaded.tokenizer.decode(ids)
    assert detokenizer.tokens == ids
    assert tokenizer.detokenizer.tokens == []


def test_tokens_are_known_by_name(loaded: LoadedModel, tokenizer: TokenizerWrapper) -> None:
    assert tokenizer.eos_token_ids == loaded.tokenizer.eog_ids
    assert len(tokenizer) == tokenizer.vocab_size == 49152
    for name in (tokenizer.bos_token, tokenizer.eos_token):
        id_ = tokenizer.convert_tokens_to_ids(name)
        assert (tokenizer.convert_ids_to_tokens(id_), tokenizer.get_vocab()[name]) == (name, id_)
    assert tokenizer.convert_ids_to_tokens([id_, 0]) == [name, loaded.tokenizer.text(0)]
    assert tokenizer.convert_tokens_to_ids("no such token") is None
    assert tokenizer.decode(tokenizer.bos_token_id) == tokenizer.bos_token
    assert tokenizer.decode(id_, skip_special_tokens=True) == ""


def test_chats_are_rendered_by_the_files_template(
    loaded: LoadedModel, tokenizer: TokenizerWrapper
) -> None:
    assert tokenizer.has_chat_template
    assert "im_start" in tokenizer.chat_template
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    talk = [Message(role=Role.USER, content="Hi"), Message(role=Role.ASSISTANT, content="Ho")]
    for ends in (False, True):
        how = {"add_generation_prompt": ends}
        assert tokenizer.apply_chat_template(said, **how) == loaded.template.encode(talk, **how)
        assert tokenizer.apply_chat_template(said, tokenize=False, **how) == (
            loaded.template.render(talk, **how)
        )
    with pytest.raises(ChatTemplateError, match="no tools are called"):
        tokenizer.apply_chat_template(said, tools=[{"name": "now"}])
    with pytest.raises(ValueError, match="got a message of role 'king'"):
        tokenizer.apply_chat_template([{"role": "king", "content": "12:00"}])


def test_an_answer_of_mlx_lms_functions_is_embers(
    loaded: LoadedModel, tokenizer: TokenizerWrapper
) -> None:
    ids = loaded.template.encode(conversation("What is the capital of France?"))
    config = CacheConfig(max_tokens=400, hot=32, slack=4)
    steps = generate_step(
        mx.array(ids),
        loaded.model,
        prompt_cache=make_prompt_cache(loaded.model, config),
        max_tokens=20,
    )
    want: list[int] = []
    for token, _ in steps:
        if token in loaded.tokenizer.eog_ids:
            break
        want.append(int(token))
    text = loaded.tokenizer.decode(want)
    assert "Paris" in text
    answers = list(
        stream_generate(
            loaded.model,
            tokenizer,
            ids,
            max_tokens=20,
            prompt_cache=make_prompt_cache(loaded.model, config),
        )
    )
    assert "".join(answer.text for answer in answers) == text
    assert answers[-1].finish_reason == "stop"
    # A draft of its own, in caches that mlx-lm makes.
    assert generate(loaded.model, tokenizer, ids, max_tokens=20, draft_model=loaded.model) == text
    both = [*make_prompt_cache(loaded.model), *make_prompt_cache(loaded.model)]
    with pytest.raises(CacheError, match=r"takes back 0: make caches with CacheConfig\(slack=2\)"):
        generate(loaded.model, tokenizer, ids, draft_model=loaded.model, prompt_cache=both)


def test_a_batch_of_a_network_of_mlx_lms(loaded: LoadedModel, tokenizer: TokenizerWrapper) -> None:
    mx.random.seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_attention_heads": 2,
    }
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama", rms_norm_eps=1e-5, vocab_size=tokenizer.vocab_size, **sizes
        )
    )
    prompts = [tokenizer.encode(text) for text in TEXTS[:2]]
    answers = batch_generate(
        model, tokenizer, prompts, max_tokens=7, return_token_ids=True, sampler=make_sampler(0)
    )
    assert answers.token_ids is not None
    assert all(len(ids) == 7 for ids in answers.token_ids)
    assert answers.texts == [
        loaded.tokenizer.decode(ids, skip_special=False) for ids in answers.token_ids
    ]


def test_who_asks_for_no_mlx_lm_imports_none() -> None:
    """It takes seconds: `import kvcache` and `import models` leave it alone."""
    script = "import sys, kvcache, models; print({'mlx_lm', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
