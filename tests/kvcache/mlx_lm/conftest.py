"""What several of these tests load."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.kvcache.tiny_llama import VOCABULARY, make_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small random model as mlx-lm loads it: words w0, w1, ... are its ids."""
    model = make_model()
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    known = {name: value for name, value in vars(model.args).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(known))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w0"})
    )
    return tmp_path
