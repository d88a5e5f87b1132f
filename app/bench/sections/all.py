"""The sections of `bench` by name: what each runs, and how its rows are shown."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from app.bench.machine import figures
from app.bench.meter import Meter
from app.bench.sections import (
    attention,
    attention_view,
    claim,
    claim_view,
    clients,
    clients_view,
    endless,
    endless_view,
    hooked,
    hooked_view,
    load,
    load_view,
    lookup,
    lookup_view,
    memory,
    memory_view,
    needle,
    needle_view,
    quality,
    quality_view,
    roofline,
    roofline_view,
    speed,
    speed_view,
    wake,
    wake_view,
)
from app.bench.settings import (
    AttentionSettings,
    ClaimSettings,
    EndlessSettings,
    HookedSettings,
    LoadSettings,
    LookupSettings,
    MemorySettings,
    NeedleSettings,
    QualitySettings,
    RooflineSettings,
    ServeSettings,
    Settings,
    SpeedSettings,
    WakeSettings,
)
from app.bench.showing.view import View


def _nothing(_settings: Settings) -> dict[str, Any]:
    return {}


def _machine(_settings: Settings) -> dict[str, Any]:
    return figures()


@dataclass(frozen=True, kw_only=True)
class Section:
    """settings: the class of its settings. seconds, run: functions of them.

    surroundings: what the environment block has beside chip and versions.
    by_name: left out of the full run of all sections, which would take half as long again.
    is_quick: part of a look at all sections.
    """

    view: View[Any]
    settings: type[Settings]
    seconds: Callable[[Any], float]
    run: Callable[[Any, Meter], Iterator[Any]]
    surroundings: Callable[[Any], dict[str, Any]] = _nothing
    by_name: bool = False
    is_quick: bool = True


# In the order in which they are shown.
SECTIONS = {
    section.view.name: section
    for section in (
        Section(
            view=speed_view.VIEW,
            settings=SpeedSettings,
            seconds=speed.expected_seconds,
            run=speed.run,
            surroundings=speed.surroundings,
        ),
        Section(
            view=load_view.VIEW,
            settings=LoadSettings,
            seconds=load.expected_seconds,
            run=load.run,
        ),
        Section(
            view=attention_view.VIEW,
            settings=AttentionSettings,
            seconds=attention.expected_seconds,
            run=attention.run,
            surroundings=_machine,
        ),
        Section(
            view=quality_view.VIEW,
            settings=QualitySettings,
            seconds=quality.expected_seconds,
            run=quality.run,
        ),
        Section(
            view=endless_view.VIEW,
            settings=EndlessSettings,
            seconds=endless.expected_seconds,
            run=endless.run,
            by_name=True,
        ),
        Section(
            view=needle_view.VIEW,
            settings=NeedleSettings,
            seconds=needle.expected_seconds,
            run=needle.run,
            by_name=True,
        ),
        Section(
            view=lookup_view.VIEW,
            settings=LookupSettings,
            seconds=lookup.expected_seconds,
            run=lookup.run,
            by_name=True,
        ),
        Section(
            view=hooked_view.VIEW,
            settings=HookedSettings,
            seconds=hooked.expected_seconds,
            run=hooked.run,
            by_name=True,
            is_quick=False,
        ),
        Section(
            view=wake_view.VIEW,
            settings=WakeSettings,
            seconds=wake.expected_seconds,
            run=wake.run,
            by_name=True,
            is_quick=False,
        ),
        Section(
            view=clients_view.VIEW,
            settings=ServeSettings,
            seconds=clients.expected_seconds,
            run=clients.run,
            by_name=True,
            is_quick=False,
        ),
        Section(
            view=memory_view.VIEW,
            settings=MemorySettings,
            seconds=memory.expected_seconds,
            run=memory.run,
        ),
        Section(
            view=roofline_view.VIEW,
            settings=RooflineSettings,
            seconds=roofline.expected_seconds,
            run=roofline.run,
        ),
        Section(
            view=claim_view.VIEW,
            settings=ClaimSettings,
            seconds=claim.expected_seconds,
            run=claim.run,
            surroundings=_machine,
        ),
    )
}
