"""An engine on one of several ranks: what rank 0's is asked, all are asked."""

from collections.abc import Iterator, Sequence
from threading import Event as Flag

from app.engine import Engine, PromptTooLongError, Request
from app.events import Event
from app.prompt_lookup import PassCosts
from app.ranks.calls import Adapt, Forget, Generate, Keep, Make
from app.ranks.company import Company
from app.ranks.meeting import FirstFlag, FirstSampler, least
from app.sampling import Sampler, Sampling
from kvcache import CacheConfig, EmberError
from models.loader import LoadedModel, OnProgress


class RankEngine(Engine):
    """Its model was loaded by the same company.

    What fails within an answer may have failed on this rank alone, while others wait: then
    nothing more can be computed.
    """

    def __init__(
        self,
        company: Company,
        loaded: LoadedModel,
        config: CacheConfig,
        *,
        warming: OnProgress | None = None,
    ) -> None:
        """What is counted of a model's keys is not to be stopped: others wait."""
        self._company, self._failed = company, False
        make = Engine.__init__
        company.together(Make(config=config), lambda: make(self, loaded, config, warming=warming))

    def adapt(
        self,
        config: CacheConfig,
        *,
        warming: OnProgress | None = None,
        counting: OnProgress | None = None,
    ) -> None:
        adapt = super().adapt
        self._company.together(Adapt(config=config), lambda: adapt(config, warming=warming))

    def keep(self, tokens: int) -> None:
        keep = super().keep
        self._company.together(Keep(tokens=tokens), lambda: keep(tokens))

    def forget(self) -> None:
        self._company.tell(Forget())
        super().forget()

    def generate(self, request: Request, cancel: Flag | None = None) -> Iterator[Event]:
        cancel = cancel or Flag()
        self._ask(Generate(requests=[request]))
        yield from self._to_the_end(super().generate(request, cancel), cancel)

    def generate_batch(
        self, requests: Sequence[Request], cancel: Flag | None = None
    ) -> Iterator[Event]:
        cancel = cancel or Flag()
        self._ask(Generate(requests=requests, batch=True))
        yield from self._to_the_end(super().generate_batch(requests, cancel), cancel)

    # -- alike on all ranks, or the first one's word --

    def prefill_step(self) -> int:
        return least([super().prefill_step()], self._company.group)[0]

    def _is_pipelined(self) -> bool:
        """No: ranks would meet over a queued token before they knew whether to go on."""
        return False

    def _flag(self, cancel: Flag) -> Flag:
        return FirstFlag(cancel, self._company.group)

    def _sampler(self, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> Sampler:
        return FirstSampler(sampling, prompts, self._company.group)

    def _can_draft(self) -> bool:
        return bool(least([super()._can_draft()], self._company.group)[0])

    def _pass_costs(self) -> PassCosts:
        """By no clock: each rank has its own."""
        return PassCosts(measures=False)

    def _ask(self, call: Generate) -> None:
        if self._failed:
            raise EmberError("an answer has failed, and the ranks wait for each other: start anew")
        self._company.tell(call)

    def _to_the_end(self, events: Iterator[Event], cancel: Flag) -> Iterator[Event]:
        """Also where nobody takes them any more: the steps of other ranks wait for ours."""
        try:
            with self._company.meeting():
                # `yield from` would end them with whoever takes them.
                for event in events:  # noqa: UP028
                    yield event
        except PromptTooLongError:  # before anything was computed, and on all
            raise
        except EmberError:
            self._failed = True
            raise
        finally:
            cancel.set()
            for _ in events:
                pass
