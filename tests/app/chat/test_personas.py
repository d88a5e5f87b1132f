"""The file of saved prompts and personas."""

import re
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
    assert personas.get("brief").about == 'Say "one" thing. · temp 0.2 top_k 40'
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
        ("a = 1", "got 1, expected {text = …}"),
        ("[a]\ntext = 'x'\ncolour = 'red'", "got colour, expected text, system, temp"),
        ("[a]\nsystem = 7", "got system=7, expected text"),
        ("[a]\ntemp = 'hot'", "got temp='hot', expected a number"),
        ("[a]\ntemp = true", "got temp=True, expected a number"),
        ("[a]\ntemp = 500", "got temp=500, expected 0 to 100"),
        ("[a]\ntemp = nan", "got temp=nan, expected 0 to 100"),
        ("[a]\ntop_p = 0", "got top_p=0, expected above 0"),
        ("[a]\ntop_k = 2.5", "got top_k=2.5, expected a whole number"),
    ],
)
def test_what_somebody_wrote_wrongly_is_told_and_can_be_removed(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(f"{text}\n[good]\ntext = 'fine'\n")
    personas = Personas(path)
    with pytest.raises(EmberError, match=re.escape(f"the saved prompt 'a': {said}")):
        personas.get("a")
    assert personas.all()[0].about.startswith(said)
    assert personas.get("good").text == "fine"
    personas.save(BRIEF)
    personas.remove("a")
    assert [each.name for each in personas.all()] == ["brief", "good"]


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text("[a")
    with pytest.raises(EmberError, match="the saved prompts cannot be read"):
        Personas(path).all()


def test_what_replaces_another_says_what_that_was(tmp_path: Path) -> None:
    personas = Personas(tmp_path / "prompts.toml")
    personas.save(BRIEF)
    told = personas.save(Persona(name="brief", text="other"))
    assert told == [
        "it replaces another 'brief', which was: Say \"one\" thing. · temp 0.2 top_k 40"
    ]


def test_own_sampling_goes_before_the_settings() -> None:
    base = Sampling(temperature=0.5, top_p=0.9, seed=7)
    own = with_own(base, {"temp": 0.2, "top_k": 40, "colour": 3})
    assert own == Sampling(temperature=0.2, top_p=0.9, top_k=40, seed=7)
    assert with_own(base, {"temp": -3, "top_k": 2.5}) == base
    assert with_own(base, {"temp": -3, "top_k": 3}) == Sampling(
        temperature=0.5, top_p=0.9, top_k=3, seed=7
    )
