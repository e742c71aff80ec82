"""Fill an importance table: what does the score lose when a segment replaces its layers?"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerfold.data import ImageData
from layerfold.errors import UsageError, nearest_names
from layerfold.graph import Network, Segment
from layerfold.importance.estimators import ESTIMATORS, Training
from layerfold.importance.journal import Journal
from layerfold.importance.requests import Request, list_requests
from layerfold.importance.scores import SCORES, Scores, change_of, column_of, importance_of
from layerfold.importance.subject import Subject
from layerfold.progress import progress_bar
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyTable, Provenance
from layerfold.tables._kernel import SegmentKey

METHODS = tuple(ESTIMATORS)


def estimate_importance(
    model: nn.Module,
    net: Network,
    data: ImageData,
    method: str = "recalibrate",
    *,
    latency: LatencyTable | None = None,
    candidates: Sequence[Segment] | None = None,
    score: str = "accuracy",
    fill_slots: bool | None = None,
    calibration_images: int = 256,
    holdout_images: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    journal_path: str | Path | None = None,
    model_name: str | None = None,
    progress: bool = True,
) -> ImportanceTable:
    """Estimate the importance of every segment worth merging.

    Each entry stands for the original network with one change: the segment's inner activations are gone, its padding
    is at its front, its end slots are in the entry's states, and layers that an option drops are left out.
    The importance is the score on the holdout less the original's. Methods (:mod:`layerfold.importance.estimators`):

    - ``recalibrate`` measures BatchNorm statistics anew on training images, those of the original too, and trains
      nothing;
    - ``distill`` first trains the segment alone, for a few steps, to give the original's feature map at its end;
    - ``finetune`` trains the changed network (Kim et al. 2023, section 4): the dearest, by which the others are judged;
    - ``taylor`` tells from one backward pass over the original how the loss would change: no entry costs anything.

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: calibration and training images come from its train split (where it has none, from its holdout), the
            score from its holdout.
        method: one of ``METHODS``.
        latency: if given, segments whose merging is not faster than the best of their parts are left out, and
            listed in the sidecar. Options with dropped layers that are not faster than the fastest way to keep all
            layers are left out too.
        candidates: segments; None for those of ``latency``, or ``net.candidates()``.
        score: ``accuracy`` (points), ``agreement`` with the original's answers (points, needs no labels), ``loss`` (the
            holdout's cross-entropy, nats, negated) or ``kl`` (divergence from the original's answers, nats, negated,
            needs no labels).
        fill_slots: whether empty slots are also tried with an activation; None for yes with ``finetune`` and no with
            the others, since a fresh nonlinearity only ever loses before training.
        calibration_images, holdout_images: how many images are used; None for all. ``distill`` trains on the former.
        steps, batch_size, learning_rate: of ``finetune`` (300 steps) and ``distill`` (40).
        seed: of the images drawn and of training.
        journal_path: file that keeps finished entries, for resuming.
        model_name: what the user calls the model.
        progress: show a bar on stderr.

    Raises:
        UsageError: an unknown method or score, or a score that the method cannot tell.
        DataError: no images, or labels outside the model's classes.
    """
    for name, value, choices in (("method", method, METHODS), ("score", score, SCORES)):
        if value not in choices:
            raise UsageError(f"{name}={value!r}: must be one of {', '.join(choices)}{nearest_names(value, choices)}")
    segments = list(candidates) if candidates is not None else _candidates(net, latency)
    left_out: tuple[tuple[int, int], ...] = ()
    if latency is not None:
        useful: set[SegmentKey] = {*latency.useful_segments(), *latency.useful_drops()}
        left_out = tuple(sorted((s.start, s.end) for s in segments if not s.dropped and s.key not in useful))
        segments = [segment for segment in segments if segment.key in useful]
    kind = ESTIMATORS[method]
    training = Training(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    if column_of(score) not in kind.known_scores:
        known = ", ".join(each for each in SCORES if column_of(each) in kind.known_scores)
        raise UsageError(f"score={score!r}: method={method!r} cannot tell it; use score={known}, or another method")
    fills = kind.fills_slots if fill_slots is None else fill_slots
    requests = list_requests(net, segments, fill_slots=fills)
    options: dict[str, Any] = {
        "method": method, "score": score, "fill_slots": fills, "calibration_images": calibration_images,
        "holdout_images": holdout_images, "seed": seed, **kind.options(training),
    }  # fmt: skip
    weights = weights_hash(model)
    settings = {"network": net.hash, "weights": weights, "data": data.fingerprint, **options}
    journal = Journal(Path(journal_path) if journal_path is not None else None, settings)
    subject = Subject(model, net, data, calibration_images=calibration_images, holdout_images=holdout_images, seed=seed,
                      is_recalibrated=kind.is_recalibrated)
    estimator = kind(subject, training)
    todo = [r for r in requests if journal.get(r) is None and not r.changes_nothing(net)]
    known = sum(journal.get(r) is not None for r in requests)
    with progress_bar(f"importance: {method}", len(todo) + known, enabled=progress, done=known) as bar:
        for request in todo:
            journal.add(request, estimator.scores_of(request))
            bar.advance()
    original = subject.original
    entries = [_entry(request, journal.get(request) or original, original, score) for request in requests]
    provenance = Provenance(
        kind="importance",
        model=model_name or net.name,
        model_hash=weights,
        network_hash=net.hash,
        input_shape=(1, *net.input_shapes[0][1:]),
        chains=tuple((chain.start, chain.end) for chain in net.chains),
        options={**options, "data": data.name, "data_fingerprint": data.fingerprint, "original": original},
        versions={"torch": torch.__version__},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        left_out=left_out,
    )
    return ImportanceTable(entries, provenance=provenance)


def weights_hash(model: nn.Module) -> str:
    """Return a hash of a model's state: importances depend on it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _candidates(net: Network, latency: LatencyTable | None) -> list[Segment]:
    if latency is None:
        return net.candidates()
    # A published table that does not say which layers stay has nothing to estimate where some are dropped.
    return [
        net.segment(entry.start, entry.end, entry.dropped) for entry in latency.entries if entry.dropped is not None
    ]


def _entry(request: Request, scores: Scores, original: Scores, score: str) -> ImportanceEntry:
    change = change_of(scores, original)
    return ImportanceEntry(
        start=request.start,
        end=request.end,
        start_act=request.start_act,
        end_act=request.end_act,
        importance=importance_of(change, score),
        val_loss=change.get("val_loss"),
        val_acc=change.get("val_acc"),
        extra={name: change[name] for name in ("agreement", "kl") if name in change},
        merged=request.merged,
        kept=request.kept,
    )
