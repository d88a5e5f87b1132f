"""`bench quality`: what each codec costs in bits, and what it changes in the model's answers.

Every row reads the same text and answers the same questions; the f16 cache's side
is computed once. Differences of mean divergence from `h4` come with an interval. Pairs
read a second text of another kind too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app import layer_losses
from app.bench.figures.bootstrap import paired_bootstrap
from app.bench.figures.formulas import elements_per_token
from app.bench.figures.shapes import network_of
from app.bench.meter import Meter
from app.bench.sections.harness import Exact, Harness, Tiers
from app.bench.sections.passkey import Passkeys, filler_tokens, make
from app.bench.sections.text import Text, text_ids
from app.bench.settings import (
    BASELINE_KV,
    QUALITY_HOT,
    QUALITY_SINKS,
    QualitySettings,
)
from app.cache_flags import bits_of
from app.divergence import Divergence
from kvcache import Backend, CacheConfig, CachePlan, EmberError, resolve
from kvcache.allocation import Losses
from kvcache.codecs.names import NAMES
from kvcache.config import DEFAULT_KV
from models import load
from models.calibrate import key_metric
from models.loader import LoadedModel

# Pairs of different codecs that lie near the best compromise.
MIXES = (
    "hkivi5/turbo3u",
    "hkivi5/turbo3",
    "hkivi5/h4",
    "hkivi4/turbo3u",
    "kivi5/turbo4",
    "h5/h4",
    "h5/turbo3u",
    "kvarn5/kvarn3",
    "kvarn4/turbo3u",
    "kvarn3/turbo3u",
    "hkivi4/turbo2u",
    "hkivi4/turbo4u",
    "hkivi3/turbo3u",
    "hkivi5/trellis3",
    "hkivi4/trellis4",
    "hkivi4/trellis3",
    "hkivi3/trellis3",
)
_READ = (Text.ACTS, Text.TECHNICAL)
# Of other projects, as their papers have them: KVarN in blocks of 128 tokens (arXiv 2606.03458).
# TurboQuant (arXiv 2504.19874) is turbo and, with a trellis, trellis; what MLX packs is q.
_PEERS = (("kvarn4", 128), ("kvarn3", 128), ("kvarn2", 128))
# A run of neighbouring tokens that the bootstrap keeps together.
_BOOTSTRAP_BLOCK = 32
_TOKEN_SECONDS = 0.002
_LOADING_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row's cache. by_layer: the codecs of each layer in place of those of `kv`."""

    kv: str
    hot: int
    sinks: int
    block: int = CacheConfig.block
    by_layer: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.kv if self.block == CacheConfig.block else f"{self.kv} in {self.block}s"

    @property
    def tiers(self) -> Tiers:
        """What the harness is to make."""
        keys, _, values = DEFAULT_KV.partition("/") if self.by_layer else self.kv.partition("/")
        return Tiers(
            keys=keys,
            values=values or keys,
            hot=self.hot,
            sinks=self.sinks,
            block=self.block,
            by_layer=self.by_layer,
        )

    @property
    def alone(self) -> bool:
        """Whether only keys or only values are encoded."""
        return "f16" in self.kv.split("/")

    @property
    def texts(self) -> Sequence[Text]:
        """What it reads."""
        whole = not self.alone and (self.hot, self.sinks) == (QUALITY_HOT, QUALITY_SINKS)
        return _READ if whole else _READ[:1]


_REFERENCE = Setup(kv=BASELINE_KV, hot=QUALITY_HOT, sinks=QUALITY_SINKS)


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One cache against the f16 one.

    bits, key_bits, value_bits: per element of the cold tier, all-in; window_bits: of all
    tiers together in a full window of the model's context.
    kld_*: divergence of the next-token distribution, nats; top1: equal first choices.
    score_rms: error of scaled attention scores against cold keys.
    recall, f16_recall: the share of passkeys found.
    versus_*: mean divergence less that of `h4`, and its 95% interval.
    technical_*: the same of the second text; None where it was not read.
    """

    kv: str
    hot: int
    sinks: int
    bits: float
    key_bits: float
    value_bits: float
    window_bits: float
    kld_mean: float
    kld_median: float
    kld_p999: float
    top1: float
    ppl: float
    f16_ppl: float
    score_rms: float
    recall: float
    f16_recall: float
    tokens: int
    versus: float
    versus_low: float
    versus_high: float
    technical_kld_mean: float | None = None
    technical_kld_p999: float | None = None
    technical_top1: float | None = None

    @property
    def alone(self) -> bool:
        """Whether only keys or only values are encoded."""
        return Setup(kv=self.kv, hot=0, sinks=0).alone


def setups(settings: QualitySettings) -> list[Setup]:
    """The rows to measure, the baseline first; those with bits by layer come after them."""
    given = [kv for kv in settings.kv if bits_of(kv) is None]
    kinds = [BASELINE_KV, DEFAULT_KV, *(given if settings.kv else (*_every_codec(), *MIXES))]
    tiers = [(hot, QUALITY_SINKS) for hot in settings.hot]
    tiers += [(QUALITY_HOT, sinks) for sinks in settings.sinks]
    pairs = [Setup(kv=kv, hot=QUALITY_HOT, sinks=QUALITY_SINKS) for kv in kinds]
    further = [Setup(kv=kv, hot=hot, sinks=sinks) for hot, sinks in tiers for kv in settings.varied]
    peers = [
        Setup(kv=kv, hot=QUALITY_HOT, sinks=QUALITY_SINKS, block=block)
        for kv, block in (() if settings.kv else _PEERS)
    ]
    return list(dict.fromkeys(pairs + peers + further))


def expected_seconds(settings: QualitySettings) -> float:
    """Of the whole section."""
    rows = sum(_row_seconds(settings, setup) for setup in setups(settings))
    rows += len(_wanted_bits(settings)) * _row_seconds(settings, _REFERENCE)
    if _wanted_bits(settings):
        layers = network_of(settings.model).shape.layers
        rows += layer_losses.readings(layers) * _reading_seconds(settings, layer_losses.TOKENS)
    return _LOADING_SECONDS + _row_seconds(settings, _REFERENCE) + rows


def run(settings: QualitySettings, meter: Meter) -> Iterator[QualityRow]:
    """A row for each setup, as they are measured."""
    expected = _LOADING_SECONDS + _row_seconds(settings, _REFERENCE)
    with meter.step("quality: the f16 reference", expected):
        opened = open_harness(settings)
        harness = opened.harness
        exact = {text: harness.exact(opened.texts[text], skip=settings.skip) for text in _READ}
    baseline: Divergence | None = None
    for setup in [*setups(settings), *_by_layer(settings, opened, meter)]:
        label = f"quality: {setup.label}, hot {setup.hot}, sinks {setup.sinks}"
        with meter.step(label, _row_seconds(settings, setup)):
            plan = harness.plan(setup.tiers)
            found = {text: harness.divergence(plan, exact[text]) for text in setup.texts}
            baseline = baseline or found[Text.ACTS]
            row = _row(harness, setup, plan, exact[Text.ACTS], found, baseline)
        yield row


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What rows are measured with."""

    loaded: LoadedModel
    harness: Harness
    texts: Mapping[Text, Sequence[int]]


def open_harness(settings: QualitySettings) -> Opened:
    """Load the model and encode texts and questions. Raises EmberError for no or a short text."""
    backend = Backend(settings.backend).resolve()
    loaded = load(settings.model, backend=backend)
    texts = {text: text_ids(loaded.tokenizer, text)[: settings.tokens] for text in Text}
    shortest = min(map(len, texts.values()))
    if shortest < settings.skip + 2:
        raise EmberError(
            f"got --tokens {shortest}, expected more than --skip {settings.skip} and one"
        )
    # One beginning-of-text id at most: pieces are encoded without.
    encode = partial(loaded.tokenizer.encode, add_special=False)
    words = text_ids(loaded.tokenizer, add_special=False)
    start = loaded.tokenizer.encode("")

    def passkeys(hot: int) -> Passkeys:
        return make(encode, filler_tokens(words, _filler(hot)), start=start)

    harness = Harness(
        loaded.model,
        passkeys,
        config=CacheConfig(backend=backend),
        longest=max(map(len, texts.values())),
        metric=key_metric(loaded),
    )
    return Opened(loaded=loaded, harness=harness, texts=texts)


def _by_layer(settings: QualitySettings, opened: Opened, meter: Meter) -> Iterator[Setup]:
    """Rows of so many bits, with the codecs that lose least in each layer."""
    if not _wanted_bits(settings):
        return
    shape = opened.loaded.model.shape
    losses = _losses(settings, opened, meter)
    for mean in _wanted_bits(settings):
        yield Setup(
            kv=f"{mean:g} bits by layer",
            hot=QUALITY_HOT,
            sinks=QUALITY_SINKS,
            by_layer=layer_losses.chosen(losses, mean, CacheConfig.block, shape.head_dim),
        )


def _wanted_bits(settings: QualitySettings) -> list[float]:
    """Those that rows by layer are asked for."""
    return [*settings.allocate, *filter(None, map(bits_of, settings.kv))]


def _losses(settings: QualitySettings, opened: Opened, meter: Meter) -> Losses:
    """The table of the model, made and kept where there is none."""
    loaded, metric = opened.loaded, opened.harness.metric
    path = layer_losses.path_of(loaded.identity, plain=metric is None)
    found = layer_losses.kept(path, loaded.model.shape.layers)
    if found is None:
        seconds = _reading_seconds(settings, layer_losses.TOKENS)
        found = layer_losses.measure(
            loaded,
            metric,
            lambda label: meter.step(f"allocate: {label}", seconds),
            backend=Backend(settings.backend),
        )
        layer_losses.keep(found, path)
    return found


def _row(
    harness: Harness,
    setup: Setup,
    plan: CachePlan,
    exact: Exact,
    texts: Mapping[Text, Divergence],
    baseline: Divergence,
) -> QualityRow:
    found, second = texts[Text.ACTS], texts.get(Text.TECHNICAL)
    versus = paired_bootstrap(found.kl, baseline.kl, block=_BOOTSTRAP_BLOCK)
    key_bits, value_bits = _bits(plan)
    return QualityRow(
        kv=setup.label,
        hot=setup.hot,
        sinks=setup.sinks,
        bits=plan.cold_bits,
        key_bits=key_bits,
        value_bits=value_bits,
        window_bits=window_bits(plan, plan.shape.context),
        kld_mean=float(found.kl.mean()),
        kld_median=float(np.median(found.kl)),
        kld_p999=float(np.quantile(found.kl, 0.999)),
        top1=float(found.agrees.mean()),
        ppl=found.perplexity,
        f16_ppl=float(np.exp(found.reference_nll.mean())),
        score_rms=harness.score_error(plan, exact),
        recall=harness.recall(plan),
        f16_recall=harness.f16_recall(plan),
        tokens=len(found.kl),
        versus=versus.value,
        versus_low=versus.low,
        versus_high=versus.high,
        technical_kld_mean=None if second is None else float(second.kl.mean()),
        technical_kld_p999=None if second is None else float(np.quantile(second.kl, 0.999)),
        technical_top1=None if second is None else float(second.agrees.mean()),
    )


def _bits(plan: CachePlan) -> tuple[float, float]:
    """Per element of cold keys and of cold values."""
    layers = [plan.layer(index).codecs for index in range(plan.shape.layers)]
    block, dim = plan.config.block, plan.shape.head_dim
    keys, values = (
        sum(codec.bits_per_element(block, dim) for codec in role) / len(layers)
        for role in zip(*layers, strict=True)
    )
    return keys, values


def window_bits(plan: CachePlan, window: int) -> float:
    """Per element of a full window of so many tokens, sinks and hot ones included."""
    fields = plan.config.as_dict() | {"max_tokens": window}
    full = resolve(CacheConfig.from_dict(fields), plan.shape)
    elements = full.token_bytes // full.hot_dtype.mx.size // full.shape.layers
    held = sum(layers * sizes.max_tokens for sizes, layers in full.kinds.items())
    return 8 * full.max_bytes / (elements * held)


def _every_codec() -> list[str]:
    """Each for both, for keys alone and for values alone."""
    encoded = [name for name in NAMES if name != "f16"]
    return [kv for name in encoded for kv in (name, f"{name}/f16", f"f16/{name}")]


def _filler(hot: int) -> int:
    """Tokens that push the passkeys out of the hot tier."""
    return hot + 2 * CacheConfig().block


def _row_seconds(settings: QualitySettings, setup: Setup) -> float:
    questions = _filler(setup.hot) + 210
    return _reading_seconds(settings, len(setup.texts) * settings.tokens + questions)


def _reading_seconds(settings: QualitySettings, tokens: int) -> float:
    scale = elements_per_token(network_of(settings.model)) / 11520  # of the default model
    return tokens * _TOKEN_SECONDS * max(1.0, scale)
