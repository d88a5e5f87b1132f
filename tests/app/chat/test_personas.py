"""The file of saved prompts and personas."""

from pathlib import Path

import pytest

from app.chat.personas import Persona, Personas
from app.chat.state import with_own
from app.sampling import Sampling
from kvcache import EmberError

BRIEF = Persona(name="brief", system='Say "one" thing.\n', sampling={"temp": 0.2, "top_k": 40})


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "prompts.toml"
    personas = Personas(path)
    assert personas.all() == []
    assert personas.save(BRIEF) == []
    review = Persona(name="a review", text="Review this:")
    personas.save(review)
    assert Personas(path).all() == [review, BRIEF]
    assert personas.get("brief").about == 'Say "one" thing.\n · temp 0.2 top_k 40'
    personas.save(Persona(name="brief", text="other"))
    assert personas.get("brief").system == ""
    personas.remove("a review")
    with pytest.raises(EmberError, match="no saved prompt 'a review': there are brief"):
        personas.get("a review")
    with pytest.raises(EmberError, match="no saved prompt"):
        personas.remove("a review")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1", "'a' is none: expected text, system, temp"),
        ("[a]\ncolour = 'red'", "'a' is none: expected text, system, temp"),
        ("[a]\nsystem = 7", "'a' is none"),
        ("[a]\ntemp = 'hot'", "no number"),
        ("[a", "the saved prompts cannot be read"),
    ],
)
def test_a_file_that_somebody_edited_wrongly_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(text)
    with pytest.raises(EmberError, match=said):
        Personas(path).all()


def test_own_sampling_goes_before_the_settings() -> None:
    base = Sampling(temperature=0.5, top_p=0.9, seed=7)
    own = with_own(base, {"temp": 0.2, "top_k": 40, "colour": 3})
    assert own == Sampling(temperature=0.2, top_p=0.9, top_k=40, seed=7)
    assert with_own(base, {"temp": -3}) == base
