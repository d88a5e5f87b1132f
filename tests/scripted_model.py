"""A Llama in a GGUF file whose greedy answer, to any prompt, is a text that is given.

Its hidden state is the one-hot code of the last token: embeddings are the identity and
every layer adds nothing, so the output matrix is a table of what follows what.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

# As byte-level BPE vocabularies spell bytes: those that can be seen as themselves.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HEAD_DIM, _FFN = 64, 32
END = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
_NORMAL, _CONTROL, _DEFINED = 1, 3, 4


def write_scripted(
    path: Path,
    answer: Sequence[bytes],
    *,
    metadata: Mapping[str, str] | None = None,
    special: Sequence[str] = (),
    defined: Sequence[str] = (),
    after: Mapping[str, bytes] | None = None,
    endless: bool = False,
    context: int = 512,
) -> None:
    """Write the model.

    answer: its tokens, all different; after the last one comes the end, or, endless, the first.
    metadata: more text keys, or others in place of these. special: more control tokens; defined:
    more tokens of users. after: what follows other tokens, by their text, than the first of
    the answer.
    """
    controls = [*_SPECIAL, *special]
    texts = [*controls, *defined, *_ALPHABET, "ab"]
    said = [_spelled(piece) for piece in answer]
    texts += [text for text in said if text not in texts]
    ids = {text: number for number, text in enumerate(texts)}
    chain = [ids[text] for text in said] + ([] if endless else [ids[END]])
    width = -(-len(texts) // _HEAD_DIM) * _HEAD_DIM
    follows = np.full(len(texts), chain[0])
    follows[chain[:-1]] = chain[1:]
    for text, piece in (after or {}).items():
        follows[ids[text]] = ids[_spelled(piece)]
    writer = gguf.GGUFWriter(path, "llama")
    given = {"general.name": "scripted", "tokenizer.ggml.pre": "smollm", **(metadata or {})}
    for key, text in given.items():
        writer.add_string(key, text)
    _add_shape(writer, width, context)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(texts)
    types = [_CONTROL] * len(controls) + [_DEFINED] * len(defined)
    writer.add_token_types(types + [_NORMAL] * (len(texts) - len(types)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(ids[END])
    for name, rows in _tensors(len(texts), width, follows).items():
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alphabet() -> list[str]:
    unseen = [byte for byte in range(256) if byte not in _SEEN]
    stand_ins = {byte: chr(0x100 + at) for at, byte in enumerate(unseen)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


_ALPHABET = _alphabet()


def _spelled(piece: bytes) -> str:
    return "".join(_ALPHABET[byte] for byte in piece)


def _add_shape(writer: gguf.GGUFWriter, width: int, context: int) -> None:
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(width // _HEAD_DIM)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD_DIM)


def _tensors(tokens: int, width: int, follows: np.ndarray) -> dict[str, np.ndarray]:
    table = np.zeros((tokens, width), np.float32)
    table[follows, np.arange(tokens)] = 1
    zeros = {
        "attn_q": (width, width),
        "attn_k": (_HEAD_DIM, width),
        "attn_v": (_HEAD_DIM, width),
        "attn_output": (width, width),
        "ffn_gate": (_FFN, width),
        "ffn_up": (_FFN, width),
        "ffn_down": (width, _FFN),
    }
    ones = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    return {
        "token_embd.weight": np.eye(tokens, width, dtype=np.float32),
        "output.weight": table,
        **{f"{name}.weight": np.ones(width, np.float32) for name in ones},
        **{f"blk.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in zeros.items()},
    }
