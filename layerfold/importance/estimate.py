"""Fill an importance table: what does the score lose when a segment replaces its layers?"""

from __future__ import annotations

import datetime
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerfold.data import ImageData
from layerfold.errors import DataError, UsageError, nearest_names
from layerfold.executor import Executor
from layerfold.files import JsonObject
from layerfold.finetune import check_answers, check_trainable, first_images, unfreeze_parameters
from layerfold.graph import Network, Segment
from layerfold.graph.copying import copy_module
from layerfold.graph.same_model import network_call
from layerfold.importance.adaptive import estimate_adaptively
from layerfold.importance.asking import MakeWitness
from layerfold.importance.estimators import ESTIMATORS, Training
from layerfold.importance.filling import Filling, Work
from layerfold.importance.journal import cheap_journal
from layerfold.importance.requests import list_requests
from layerfold.importance.scores import NEED_LABELS, column_of
from layerfold.modules import tensor_bytes
from layerfold.options import ImportanceOptions, Refinement
from layerfold.options.importance import ADAPTIVE, AUTO, METHODS, SCORES
from layerfold.progress import progress_bar
from layerfold.settings import takes_settings
from layerfold.tables import ImportanceTable, LatencyTable, Provenance
from layerfold.tables.kernel import SegmentKey


@takes_settings(options=ImportanceOptions)
@network_call
def estimate_importance(
    model: nn.Module,
    net: Network,
    data: ImageData,
    method: str | None = None,
    *,
    options: ImportanceOptions | None = None,
    latency: LatencyTable | None = None,
    journal_path: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> ImportanceTable:
    """Estimate the importance of every segment worth merging.

    Each entry stands for the original network with one change: the segment's inner activations are gone, its padding
    is at its front, its end slots are in the entry's states, and layers that an option drops are left out.
    The importance is the score on the holdout less the original's; with ``shared``, what finetuning is expected to
    leave of that (``layerfold.importance.recovery``). Methods (``layerfold.importance.estimators``):

    - ``recalibrate`` measures BatchNorm statistics again on training images, those of the original too, and trains
      nothing;
    - ``distill`` first trains the segment alone, for a few steps, to give the original's feature map at its end;
    - ``shared`` first trains one set of weights in the networks of all entries in turn, then does as ``distill`` from
      these weights on: training tells what can be made up for, and all entries share most of its price;
    - ``finetune`` trains the changed network, and the original alike (Kim et al. 2023, section 4): the most expensive,
      by which the others are judged;
    - ``taylor`` tells from one backward pass over the original how the loss would change: no entry costs anything;
    - ``auto`` is ``shared``, or ``recalibrate`` where there are no labelled images to train on;
    - ``adaptive`` estimates every entry cheaply, and those expensively that the solver's plans stand on
      (``refinement``).

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: calibration and training images come from its train split (where it has none, from its holdout), the
            score from its holdout.
        method: one of the above.
        options, settings: see :class:`ImportanceOptions`; a setting given by name takes the place of that of
            ``options``.
        latency: if given, segments whose merging is not faster than the best of their parts are left out, and
            listed in the sidecar. Options with dropped layers that are not faster than the fastest way to keep all
            layers are left out too. ``adaptive`` needs it.
        journal_path: file that keeps finished entries, for resuming; ``remove_journal`` takes it away.
        progress: show a bar on stderr.

    Returns:
        The table. Its sidecar's options say how many seconds the estimates took, and with ``adaptive`` which entries
        were refined (column ``refined``) and whether the plans stand on such entries alone.

    Raises:
        UsageError: an unknown method or score, a score that the method cannot tell, ``adaptive`` without ``latency``,
            both ``steps`` and ``epochs``, a model that gives no logits, or one that is frozen.
        DataError: no images, no labels where they are needed, or labels outside the model's classes.
        FinetuneError: training an entry diverged, or its scores are not finite.
        ExecutorError: an entry failed on every try, or memory is too small.
        ClusterUnavailableError: there is no such cluster.
        OptionalDependencyError: Ray is not installed.

    Example:
        >>> importance = lf.estimate_importance(model, net, data, "recalibrate", score="kl", progress=False)
        >>> importance
        ImportanceTable(6 entries, source='importance table')
        >>> f"{importance.entry(0, 3).importance:.4f} nats"
        '... nats'
    """
    options = _settled(options or ImportanceOptions(), data)
    check_method(options.method, _score_of(options), data, options.refinement)
    _check_precision(options)
    check_answers(model, first_images(data))
    if trains(options.method, options.refinement):
        check_trainable(model, unfreeze=options.unfreeze, keep_frozen=options.keep_frozen)
        if options.unfreeze:
            model = copy_module(model)
            unfreeze_parameters(model)
    segments, left_out = _worth_estimating(net, latency, options.candidates)
    fills = _fills_slots(options)
    requests = list_requests(net, segments, fill_slots=fills)
    common: JsonObject = {
        "score": options.score,
        "fill_slots": fills,
        "calibration_images": options.calibration_images,
        "holdout_images": options.holdout_images,
        "seed": options.seed,
    }
    is_int8 = options.precision == "int8"
    if is_int8:  # float32 goes without saying: journals of earlier versions go on
        common["precision"] = options.precision
    weights = weights_hash(model)
    decisive = {"network": net.hash, "weights": weights, "data": data.fingerprint, **common}
    journal = Path(journal_path) if journal_path is not None else None

    provenance = Provenance(
        kind="importance",
        model=options.model_name or net.name,
        model_hash=weights,
        network_hash=net.hash,
        input_shape=(1, *net.input_shapes[0][1:]),
        dtype="int8" if is_int8 else "",
        chains=tuple((chain.start, chain.end) for chain in net.chains),
        options={"method": options.method, **common, "data": data.name, "data_fingerprint": data.fingerprint},
        versions={"torch": torch.__version__},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        left_out=left_out,
    )
    training = Training(
        steps=_steps_of(options, data),
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    if options.method == ADAPTIVE and latency is None:
        raise UsageError(
            "method='adaptive': needs a latency table, for the solver whose plans it refines; pass "
            "latency (--latency), or use another method"
        )
    where = Executor.of(options.executor)
    # Workers are told how to go about it, not of what: each question says that.
    told = replace(options, candidates=None, executor="local")
    make_witness = MakeWitness(model=model, net=net, data=data, options=told, threads=where.threads_each)
    with (
        _threads_kept(),
        tempfile.TemporaryDirectory(prefix="layerfold-") as scratch,
        where.open(make_witness) as pool,
    ):
        work = Work(
            net=net,
            score=_score_of(options),
            entries=[request for request in requests if is_int8 or not request.changes_nothing(net)],
            settings=decisive,
            pool=pool,
            is_local=where.kind == "local",
            scratch=Path(scratch),
            progress=progress,
        )
        if options.method == ADAPTIVE:
            assert latency is not None
            how = options.refinement
            cheap = Filling(
                work, how.start_with, replace(training, steps=None, learning_rate=None), cheap_journal(journal)
            )
            expensive = Filling(work, how.refine_with, training, journal)
            return estimate_adaptively(net, latency, requests, cheap, expensive, how, provenance, progress=progress)
        filling = Filling(work, options.method, training, journal)
        needed = filling.needed(work.entries)
        unknown = filling.unknown(needed)
        filling.prepare(unknown)
        done = len(needed) - len(unknown)
        with progress_bar(f"importance: {options.method}", len(needed), enabled=progress, done=done) as bar:
            filling.fill(unknown, bar.advance)
        entries = [filling.entry(request) for request in requests]
        said = {
            **provenance.options,
            **filling.options,
            "original": filling.original,
            "seconds": round(filling.seconds, 3),
        }
        return ImportanceTable(entries, provenance=replace(provenance, options=said))


def _settled(options: ImportanceOptions, data: ImageData) -> ImportanceOptions:
    """Return the options with what is left to the data said: the method and the score."""
    method = options.method
    if method == AUTO:
        method = "recalibrate" if options.precision == "int8" else default_method(data)
    return replace(options, method=method, score=options.score or ("accuracy" if data.is_labelled else "agreement"))


def _check_precision(options: ImportanceOptions) -> None:
    """Refuse int8 of a method that scores in float32."""
    used = _used_methods(options.method, options.refinement)
    unable = [each for each in used if not getattr(ESTIMATORS[each], "rounds", False)]
    if options.precision == "int8" and unable:
        raise UsageError(
            f"precision='int8': method={unable[0]!r} scores entries in float32; use method='recalibrate', or leave "
            "precision out: a table of importances in float32 goes with latencies in int8 too"
        )


def _score_of(options: ImportanceOptions) -> str:
    assert options.score is not None  # it is settled
    return options.score


def _fills_slots(options: ImportanceOptions) -> bool:
    if options.fill_slots is not None:
        return options.fill_slots
    return options.method != ADAPTIVE and ESTIMATORS[options.method].fills_slots


def check_method(method: str, score: str, data: ImageData, refinement: Refinement | None = None) -> None:
    """Refuse a method and a score that do not go together, or not with these images.

    Args:
        method: one of ``METHODS``, but for ``auto``.
        score: one of ``SCORES``.
        data: the images.
        refinement: how ``adaptive`` goes about it.

    Raises:
        UsageError: an unknown name, or a score that the method cannot tell.
        DataError: no labels, or no training images, where they are needed.
    """
    for name, value, choices in (("method", method, METHODS), ("score", score, SCORES)):
        if value not in choices:
            raise UsageError(f"{name}={value!r}: must be one of {', '.join(choices)}{nearest_names(value, choices)}")
    used = _used_methods(method, refinement or Refinement())
    for each in used:
        known = [name for name in SCORES if column_of(name) in ESTIMATORS[each].known_scores]
        if score not in known:
            raise UsageError(
                f"score={score!r}: method={each!r} cannot tell it; use score={', '.join(known)}, or another method"
            )
    trains_original = any(ESTIMATORS[each].trains_original for each in used)
    if (score in NEED_LABELS or trains_original) and not data.is_labelled:
        raise DataError(
            f"score={score!r}, method={' and '.join(used)}: {data.name} has no labels; use score='kl' or "
            "'agreement', with method='distill' or 'recalibrate'"
        )
    if trains_original:
        data.split("train")


def trains(method: str, refinement: Refinement | None = None) -> bool:
    """Say whether a method, or one that ``adaptive`` uses, trains weights."""
    return any(ESTIMATORS[each].trains for each in _used_methods(method, refinement or Refinement()))


def _used_methods(method: str, refinement: Refinement) -> tuple[str, ...]:
    return (refinement.start_with, refinement.refine_with) if method == ADAPTIVE else (method,)


def default_method(data: ImageData, *, is_finetuned: bool = True) -> str:
    """Return what ``auto`` stands for.

    Args:
        data: ``shared`` needs labelled images to train on.
        is_finetuned: whether the network will be, after merging; without, what that would make up for stays lost.
    """
    return "shared" if is_finetuned and data.is_labelled and data.train is not None else "recalibrate"


def _steps_of(options: ImportanceOptions, data: ImageData) -> int | None:
    if options.epochs is None:
        return options.steps
    return options.epochs * len(data.loader("train", options.batch_size, drop_last=True))


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch back the threads it had: a worker in this process may take others."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _worth_estimating(
    net: Network, latency: LatencyTable | None, candidates: Sequence[Segment] | None
) -> tuple[list[Segment], tuple[tuple[int, int], ...]]:
    """Return the segments to estimate, and those that are left out since merging them is no gain."""
    segments = list(candidates) if candidates is not None else _candidates(net, latency)
    if latency is None:
        return segments, ()
    useful: set[SegmentKey] = {*latency.useful_segments(), *latency.useful_changes()}
    left_out = sorted((s.start, s.end) for s in segments if s.change is None and s.key not in useful)
    return [segment for segment in segments if segment.key in useful], tuple(left_out)


def weights_hash(model: nn.Module) -> str:
    """Return a hash of a model's state: importances depend on it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor_bytes(value))
    return digest.hexdigest()[:16]


def _candidates(net: Network, latency: LatencyTable | None) -> list[Segment]:
    if latency is None:
        return net.candidates()
    # A published table that does not say which layers stay has nothing to estimate where some are dropped.
    known = [entry for entry in latency.entries if entry.change is None or entry.change.layers is not None]
    return [
        net.changed([] if each.change is None else [each.change]).segment(each.start, each.end, each.dropped or ())
        for each in known
    ]
