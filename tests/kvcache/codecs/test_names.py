import re

import pytest

from kvcache.codecs import NAMES, codec, parse_pair
from kvcache.errors import CacheError


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_is_called_what_it_was_asked_for(name: str) -> None:
    assert codec(name).name == name


def test_all_the_documented_names_exist() -> None:
    documented = (
        "f16 q8 q6 q5 q4 q3 q2 h8 h6 h5 h4 h3 h2 turbo4 turbo3 turbo2 turbo4p turbo3p turbo2p "
        "trellis4 trellis3 trellis2 "
        "kivi5 kivi4 kivi3 kivi2 hkivi5 hkivi4 hkivi3 hkivi2 "
        "kvarn8 kvarn6 kvarn5 kvarn4 kvarn3 kvarn2"
    )
    assert set(documented.split()) <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "hint"), [("kvran4", "kvarn4"), ("turbo44", "turbo4"), ("Q4", None), ("", None)]
)
def test_an_unknown_name_is_refused_with_what_is_known(name: str, hint: str | None) -> None:
    with pytest.raises(CacheError) as caught:
        codec(name)
    message = str(caught.value)
    assert message.startswith(f"got codec {name!r}, expected one of f16, q8, ")
    assert ("did you mean" in message) == (hint is not None)
    assert hint is None or message.endswith(f"did you mean {hint}?")


@pytest.mark.parametrize(
    ("text", "names"),
    [("kvarn4/q3", ("kvarn4", "q3")), ("h4", ("h4", "h4")), ("f16/turbo2p", ("f16", "turbo2p"))],
)
def test_a_pair_is_keys_then_values(text: str, names: tuple[str, str]) -> None:
    keys, values = parse_pair(text, seed=3)
    assert (keys.name, values.name) == names


@pytest.mark.parametrize("text", ["", "q4/", "/q4", "q4/q3/q2", "q4,q3"])
def test_a_malformed_pair_is_refused(text: str) -> None:
    with pytest.raises(CacheError, match=r"expected one"):
        parse_pair(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("turbo6", "expected turboN of 2, 3, 4 bits, as many levels as kernels look up"),
        ("turbo5u", "or for 5 bits q5, h5, kivi5, hkivi5, kvarn5; did you mean turbo4u"),
        ("trellis8", "expected trellisN of 2, 3, 4 bits, as many levels"),
        ("hkivi6", "expected hkiviN of 2, 3, 4, 5 bits, or for 6 bits q6, h6, kvarn6"),
        ("q7", "expected qN of 2, 3, 4, 5, 6, 8 bits"),
        ("zip4", "expected one of f16, q8"),
    ],
)
def test_bits_that_a_family_has_not_are_said(name: str, said: str) -> None:
    with pytest.raises(CacheError, match=re.escape(said).replace(r"\$", "$")):
        codec(name)
