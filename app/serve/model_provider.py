"""The one model of a server, as mlx-lm's `ModelProvider`: from ember's loader, never by a name
that a client gives.

What is here is loaded by, and lives on, the thread that computes; of the figures of a load
(`LoadedServer`) any thread may know.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlx_lm import server
from mlx_lm.tokenizer_utils import TokenizerWrapper

from app.chat_tokens import ChatTokens
from app.engine import Engine
from app.memory import Admitted
from app.options import LoadOptions, Think
from app.ranks.calls import LoadServed
from app.ranks.company import Company
from app.ranks.meeting import least
from app.ranks.same_model import load_together, narrowest
from app.serve.budget import Budget, admit_server, bytes_of_one
from app.serve.server_settings import ServerSettings
from app.session import asked_cache, load_as_asked, load_notes, make_engine
from app.wake.folder import PieceFolder, default_folder
from app.wake.waking import Waking
from kvcache import CacheConfig
from models.finding import catalogue
from models.loader import LoadedModel, OnProgress
from models.mlx_lm import tokenizer_of
from models.network.config import NetworkConfig

# mlx-lm's word for the model that a server was started with.
DEFAULT = "default_model"
_MOST_TOKENS = 1 << 30


@dataclass(frozen=True, kw_only=True)
class LoadedServer:
    """A model that is served.

    names: by which clients may ask for it, the first for who does not know. notes: what the user
    should know of the load, a line each.
    """

    loaded: LoadedModel
    names: tuple[str, ...]
    tokenizer: TokenizerWrapper
    budget: Budget
    notes: tuple[str, ...]

    @property
    def window(self) -> int:
        """Tokens that a sequence holds."""
        return self.budget.plan.max_tokens


class ModelProvider(server.ModelProvider):
    """Loads the model once. ready: the load's figures, or what it failed by.

    company: the ranks that share the model; None where there is one process.
    """

    def __init__(
        self,
        path: Path,
        settings: ServerSettings,
        company: Company | None = None,
        *,
        loading: OnProgress | None = None,
        counting: OnProgress | None = None,
        warming: OnProgress | None = None,
    ) -> None:
        super().__init__(_arguments(settings))
        self.ready: Future[LoadedServer] = Future()
        self._path, self._settings, self.company = path, settings, company
        self._loading, self._counting, self._warming = loading, counting, warming
        self._engine: Engine | None = None

    def load_default(self) -> None:
        """Load the model, on this thread; `ready` has what becomes of it. Raises EmberError."""
        try:
            self.ready.set_result(self._load_model())
        except BaseException as error:
            self.ready.set_exception(error)
            raise

    @property
    def engine(self) -> Engine:
        """The model with the plan of a sequence; its own cache stays empty."""
        assert self._engine is not None
        return self._engine

    def waking(self) -> Waking | None:
        """What keeps prompts on disk, unless the user wants none; no rank wakes another."""
        most = self._settings.stored if self.company is None else 0
        return Waking(PieceFolder(default_folder(), most)) if most else None

    def reset(self) -> None:
        """Let go of the model."""
        super().reset()
        self._engine = None

    def _load_model(self) -> LoadedServer:
        settings = self._settings
        loaded, admitted, total = load_served(
            self._path,
            settings.cache,
            settings.total,
            settings.load,
            progress=self._loading,
            company=self.company,
        )
        self._engine = engine = make_engine(
            loaded, admitted.config, self.company, warming=self._warming, counting=self._counting
        )
        self.model, self.tokenizer = loaded.model, tokenizer_of(loaded)
        self.model_key = (DEFAULT, None, None)
        self._set_sampling(loaded)
        return LoadedServer(
            loaded=loaded,
            names=_names(loaded),
            tokenizer=self.tokenizer,
            budget=Budget(total=total, plan=engine.plan),
            notes=(*admitted.notes, *self._notes(engine, settings)),
        )

    def _notes(self, engine: Engine, settings: ServerSettings) -> Iterator[str]:
        chat = ChatTokens(engine.loaded)
        asked = settings.cache.backend
        yield from load_notes(engine, asked=asked, hot=settings.hot, chat=chat)
        if settings.think is Think.OFF and not chat.has_switch:
            yield "this model's chat format has no switch for thinking: --think off is for others"

    def _set_sampling(self, loaded: LoadedModel) -> None:
        """As flags say, else as the model's makers recommend."""
        thinking = loaded.template.thinking
        recommended = loaded.sampling.recommended(
            False if self._settings.think is Think.OFF else None,
            thinks=thinking.marks is not None,
            has_switch=bool(thinking.variables(False) or thinking.word(False)),
        )
        values = {**recommended.values, **self._settings.sampling}
        args = self.cli_args
        args.temp, args.top_p, args.min_p = values["temp"], values["top_p"], values["min_p"]
        args.top_k, args.repeat_penalty = int(values["top_k"]), values["repeat_penalty"]


def load_served(
    path: Path,
    config: CacheConfig,
    total: int | None,
    options: LoadOptions,
    *,
    progress: OnProgress | None = None,
    company: Company | None = None,
) -> tuple[LoadedModel, Admitted, int]:
    """A model, what of a sequence's cache fits beside it, and bytes of all sequences.

    total: as the user gave it, see `admit_server`. company: the ranks that each load their share.
    Raises TooLargeError before the model is read.
    """
    admitted, given = Admitted(config=config), total

    def accept(model: NetworkConfig, weights: int) -> None:
        nonlocal admitted, total
        wanted = asked_cache(path, config, options, model)
        admitted, total = admit_server(wanted, given, model, weights, force=options.force)

    read = partial(
        load_as_asked,
        path,
        config,
        options,
        company,
        accept=accept,
        progress=progress,
        renders=True,
    )
    if company is None:
        loaded = read()
        assert total is not None
        return loaded, admitted, total
    # Which codecs give so many bits is looked up once.
    alike = replace(options, bits=None)
    call = LoadServed(path=path, config=config, options=alike, total=given)
    loaded = load_together(company, call, read)
    assert total is not None
    (places,) = least([total // bytes_of_one(admitted.config, loaded.config)], company.group)
    admitted = narrowest(admitted, company)
    return loaded, admitted, given or places * bytes_of_one(admitted.config, loaded.config)


def _names(loaded: LoadedModel) -> tuple[str, ...]:
    """The catalogue's name, or the file's; and those for people."""
    path, known = loaded.path, catalogue.entry_of_file(loaded.path.name)
    short = known.name if known is not None else path.stem
    return tuple(dict.fromkeys([short, path.stem, path.name, loaded.name, loaded.title]))


def _arguments(settings: ServerSettings) -> argparse.Namespace:
    """What mlx-lm's server reads of its own flags."""
    thinks = {"enable_thinking": False} if settings.think is Think.OFF else {}
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=0,
        trust_remote_code=False,
        chat_template="",
        chat_template_args=thinks,
        pipeline=False,
        max_tokens=settings.max_tokens or _MOST_TOKENS,
    )
