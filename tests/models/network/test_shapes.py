from dataclasses import replace
from math import prod

import pytest

from models.errors import GGUFError
from models.gguf.header import TensorInfo
from models.gguf.tensor_types import TensorType
from models.network.config import NetworkConfig
from models.network.shapes import check_tensors, notes_on
from models.network.switches import Switches

CONFIG = NetworkConfig(
    layers=2,
    hidden=64,
    ffn=96,
    heads=4,
    kv_heads=2,
    head_dim=32,
    context=128,
    norm_eps=1e-5,
    rope_dims=16,
    rope_base=10000.0,
)
TOKENS = 53
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (TOKENS, 64),
    "output.weight": (TOKENS, 64),
    "output_norm.weight": (64,),
    "rope_freqs.weight": (8,),
    **{
        f"blk.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "attn_norm.weight": (64,),
            "attn_q.weight": (128, 64),
            "attn_q.bias": (128,),
            "attn_k.weight": (64, 64),
            "attn_v.weight": (64, 64),
            "attn_output.weight": (64, 128),
            "ffn_norm.weight": (64,),
            "ffn_gate.weight": (96, 64),
            "ffn_up.weight": (96, 64),
            "ffn_down.weight": (64, 96),
        }.items()
    },
}


def info(name: str, shape: tuple[int, ...], kind: TensorType = TensorType.F16) -> TensorInfo:
    nbytes = prod(shape) // kind.block_size * kind.block_bytes
    return TensorInfo(name=name, shape=shape, type=kind, offset=7, nbytes=nbytes)


def checked(
    shapes: dict[str, tuple[int, ...]], *, config: NetworkConfig = CONFIG, tokens: int = TOKENS
) -> dict[str, TensorInfo]:
    infos = {name: info(name, shape) for name, shape in shapes.items()}
    return check_tensors(infos, config, tokens=tokens)


def refusal(
    shapes: dict[str, tuple[int, ...]], *, config: NetworkConfig = CONFIG, tokens: int = TOKENS
) -> str:
    with pytest.raises(GGUFError) as caught:
        checked(shapes, config=config, tokens=tokens)
    return str(caught.value)


def test_a_file_without_contradictions_is_taken_as_it_is() -> None:
    assert checked(SHAPES) == {name: info(name, shape) for name, shape in SHAPES.items()}
    optional = ("output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.attn_q.bias")
    plain = {name: shape for name, shape in SHAPES.items() if name not in optional}
    assert checked(plain).keys() == plain.keys()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("change", ["one less", "one more", "another axis"])
def test_every_shape_is_held_to_the_configuration(name: str, change: str) -> None:
    first, *rest = SHAPES[name]
    other = (
        (first, 2, *rest)
        if change == "another axis"
        else (first + (1 - 2 * (change == "one less")), *rest)
    )
    assert repr(name) in refusal(SHAPES | {name: other})


@pytest.mark.parametrize(
    "count", ["layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "rope_dims"]
)
def test_every_count_is_held_to_the_tensors(count: str) -> None:
    other = replace(CONFIG, **{count: getattr(CONFIG, count) // 2})
    refusal(SHAPES, config=other)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SHAPES
        if "bias" not in name and "rope" not in name and name != "output.weight"
    ],
)
def test_what_is_missing_is_named(name: str) -> None:
    without = {each: shape for each, shape in SHAPES.items() if each != name}
    assert refusal(without).startswith(f"tensor {name!r} is missing, expected shape [")


def test_fewer_rows_than_tokens_are_refused() -> None:
    message = refusal(SHAPES, tokens=TOKENS + 1)
    assert "'token_embd.weight' has 53 rows, expected one for each of the 54 tokens" in message
    assert "'output.weight' has 52 rows" in refusal(SHAPES | {"output.weight": (52, 64)})


def test_rows_beyond_the_vocabulary_are_left_out() -> None:
    found = checked(SHAPES, tokens=47)
    for name in ("token_embd.weight", "output.weight"):
        assert found[name] == info(name, (47, 64))
    quantized = {name: info(name, shape) for name, shape in SHAPES.items()}
    quantized["token_embd.weight"] = info("token_embd.weight", (TOKENS, 64), TensorType.Q4_0)
    kept = check_tensors(quantized, CONFIG, tokens=47)["token_embd.weight"]
    assert kept == info("token_embd.weight", (47, 64), TensorType.Q4_0)


def test_tables_of_different_padding_contradict_each_other() -> None:
    assert "'output.weight' has 54 rows" in refusal(SHAPES | {"output.weight": (54, 64)})


def test_leading_axes_of_one_say_nothing() -> None:
    shaped = SHAPES | {"token_embd.weight": (1, 1, TOKENS, 64), "output_norm.weight": (1, 64)}
    assert checked(shaped) == checked(SHAPES)
    assert "has shape [53, 1, 64], expected [53, 64]" in refusal(
        SHAPES | {"token_embd.weight": (TOKENS, 1, 64)}
    )


def test_a_vector_is_not_quantized() -> None:
    infos = {name: info(name, shape) for name, shape in SHAPES.items()}
    name = "blk.1.ffn_norm.weight"
    infos[name] = info(name, (64,), TensorType.Q8_0)
    with pytest.raises(GGUFError, match=rf"'{name}' is Q8_0, expected F32, F16 or BF16"):
        check_tensors(infos, CONFIG, tokens=TOKENS)


def test_what_sees_pictures_is_left_out() -> None:
    more = {"v.blk.0.attn_q.weight": (40, 40), "mm.input_projection.weight": (64, 40)}
    assert checked(SHAPES | more) == checked(SHAPES)
    infos = {name: info(name, shape) for name, shape in (SHAPES | more).items()}
    assert notes_on(infos) == ("2 tensors that see pictures are left out: text only",)
    assert notes_on({name: info(name, shape) for name, shape in SHAPES.items()}) == ()


@pytest.mark.parametrize("fused_first", [True, False])
def test_a_part_beside_the_fused_matrix_is_refused(fused_first: bool) -> None:
    fused = {"blk.1.attn_qkv.weight": (256, 64)}
    shapes = fused | SHAPES if fused_first else SHAPES | fused
    assert refusal(shapes).endswith(".weight' is there by itself and in a fused one")


def test_fused_matrices_become_their_parts() -> None:
    fused = {name: shape for name, shape in SHAPES.items() if "ffn_gate" not in name}
    for layer in range(2):
        for letter in "qkv":
            del fused[f"blk.{layer}.attn_{letter}.weight"]
        fused[f"blk.{layer}.attn_qkv.weight"] = (256, 64)
        fused[f"blk.{layer}.attn_qkv.bias"] = (256,)
        fused[f"blk.{layer}.ffn_up.weight"] = (192, 64)
        del fused[f"blk.{layer}.attn_q.bias"]
    config = replace(CONFIG, switches=Switches(fused=True))
    found = checked(fused, config=config)
    weights = [set(filter(lambda name: name.endswith("weight"), each)) for each in (found, SHAPES)]
    assert weights[0] == weights[1]
    starts = {"attn_q": (0, 128), "attn_k": (128, 64), "attn_v": (192, 64)}
    for part_name, (start, rows) in starts.items():
        part, bias = (found[f"blk.1.{part_name}.{kind}"] for kind in ("weight", "bias"))
        lies = part.offset, part.nbytes
        assert (part.shape, *lies) == ((rows, 64), 7 + 128 * start, 128 * rows)
        lies = bias.offset, bias.nbytes
        assert (bias.shape, *lies) == ((rows,), 7 + 2 * start, 2 * rows)
    gate, up = (found[f"blk.0.ffn_{name}.weight"] for name in ("gate", "up"))
    assert (gate.offset, up.offset, gate.shape, up.shape) == (7, 7 + 96 * 128, (96, 64), (96, 64))
    fused["blk.0.attn_qkv.weight"] = (255, 64)
    message = refusal(fused, config=config)
    assert "'blk.0.attn_qkv.weight' has shape [255, 64], expected 256 rows: of attn_q" in message


def test_what_the_network_does_not_take_is_refused() -> None:
    experts = refusal(SHAPES | {"blk.0.ffn_gate_exps.weight": (4, 96, 64)})
    assert "(first: 'blk.0.ffn_gate_exps.weight')" in experts
    beyond = refusal(SHAPES | {"blk.2.attn_norm.weight": (64,)})
    assert "'blk.2.attn_norm.weight' belongs to none of the 2 layers" in beyond
