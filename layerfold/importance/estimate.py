"""Fill an importance table: what does the score lose when a segment replaces its layers?"""

from __future__ import annotations

import copy
import datetime
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from layerfold.data import ImageData
from layerfold.errors import UsageError, nearest_names
from layerfold.finetune import averaging_batch_norm, check_labels, finetune_network, recalibrate_batch_norm
from layerfold.graph import Network, Segment
from layerfold.importance.journal import Journal
from layerfold.importance.requests import Request, list_requests
from layerfold.importance.suffix import FeatureBank, crossing_names, record_shapes, shared_names, split_suffix
from layerfold.merge import build_train_form
from layerfold.progress import progress_bar
from layerfold.solver import Solution
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyTable, Provenance
from layerfold.tables._kernel import SegmentKey

METHODS = ("recalibrate", "finetune")
SCORES = ("accuracy", "agreement", "loss")
_Scores = dict[str, float]


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
    steps: int = 300,
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
    ``recalibrate`` then measures BatchNorm statistics anew on training images, without training; ``finetune`` trains
    the changed network for ``steps`` steps (Kim et al. 2023, section 4). The importance is the score on the holdout
    less the original's, in points; with ``recalibrate`` the original's statistics are measured anew as well.

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: calibration and training images come from its train split (where it has none, from its holdout), the
            score from its holdout.
        method: ``recalibrate`` or ``finetune``.
        latency: if given, segments whose merging is not faster than the best of their parts are left out, and
            listed in the sidecar. Options with dropped layers that are not faster than the fastest way to keep all
            layers are left out too.
        candidates: segments; None for those of ``latency``, or ``net.candidates()``.
        score: ``accuracy`` (points), ``agreement`` with the original's answers (points, needs no labels), or ``loss``
            (the holdout's cross-entropy, nats, negated).
        fill_slots: whether empty slots are also tried with an activation; None for yes with ``finetune`` and no with
            ``recalibrate``, since a fresh nonlinearity only ever loses before training.
        calibration_images, holdout_images: how many images are used; None for all.
        steps, batch_size, learning_rate, seed: of ``finetune``.
        journal_path: file that keeps finished entries, for resuming.
        model_name: what the user calls the model.
        progress: show a bar on stderr.

    Raises:
        UsageError: an unknown method or score.
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
    fills = method == "finetune" if fill_slots is None else fill_slots
    requests = list_requests(net, segments, fill_slots=fills)
    options: dict[str, Any] = {
        "method": method, "score": score, "fill_slots": fills, "calibration_images": calibration_images,
        "holdout_images": holdout_images, "seed": seed,
    }  # fmt: skip
    if method == "finetune":
        options |= {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    weights = weights_hash(model)
    settings = {"network": net.hash, "weights": weights, "data": data.fingerprint, **options}
    journal = Journal(Path(journal_path) if journal_path is not None else None, settings)
    scorer = _Scorer(model, net, data, options)
    todo = [r for r in requests if journal.get(r) is None and not r.changes_nothing(net)]
    known = sum(journal.get(r) is not None for r in requests)
    with progress_bar(f"importance: {method}", len(todo) + known, enabled=progress, done=known) as bar:
        for request in todo:
            journal.add(request, scorer.measure(request))
            bar.advance()
    original = scorer.original
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


def _entry(request: Request, scores: _Scores, original: _Scores, score: str) -> ImportanceEntry:
    # Rounded, so that shares of the same few images that are equal stay equal: sums of noise at 1e-15 are no order.
    changes = {name: round(scores[name] - original[name], 9) for name in original}
    importance = {
        "accuracy": changes["val_acc"], "agreement": changes["agreement"], "loss": -changes["val_loss"]
    }[score]  # fmt: skip
    return ImportanceEntry(
        start=request.start,
        end=request.end,
        start_act=request.start_act,
        end_act=request.end_act,
        importance=importance,
        val_loss=changes["val_loss"],
        val_acc=changes["val_acc"],
        extra={"agreement": changes["agreement"]},
        merged=request.merged,
        kept=request.kept,
    )


class _Scorer:
    """Builds the changed network of an entry and scores it, by the method of ``options``."""

    def __init__(self, model: nn.Module, net: Network, data: ImageData, options: dict[str, Any]) -> None:
        self._net, self._data, self._options = net, data, options
        # Channels last is several times faster in depthwise convs on a CPU.
        self._model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
        limit, seed = options["holdout_images"], options["seed"]
        holdout = [(_channels_last(x), y) for x, y in data.loader("holdout", 256, limit=limit, seed=seed)]
        source = "holdout" if data.train is None else "train"
        calibration = [
            _channels_last(x) for x, _ in data.loader(source, 128, limit=options["calibration_images"], seed=seed)
        ]
        self._answers = self._logits(self._model, [(x,) for x, _ in holdout]).argmax(1)
        if options["method"] == "recalibrate":
            # Original and changed networks then differ by the change alone, not by whose statistics are fresh.
            recalibrate_batch_norm(self._model, calibration)
        self._form_of_original = self._form(net.original_act_pos, range(1, len(net.layers) + 1))
        record_shapes(net, self._form_of_original)
        self._calibration = FeatureBank(self._form_of_original, calibration)
        self._holdout = FeatureBank(self._form_of_original, [x for x, _ in holdout])
        self._labels = torch.cat([y for _, y in holdout])
        check_labels(self._labels, int(self._form_of_original(holdout[0][0][:1]).shape[1]))
        self.original = self._scores(self._logits(self._form_of_original, self._holdout.inputs()))

    def measure(self, request: Request) -> _Scores:
        """Return the scores of the changed network."""
        changed = self._form(request.act_pos(self._net), request.merge_pos(self._net), request.dropped)
        if self._options["method"] == "finetune":
            finetune_network(
                changed, self._data, steps=self._options["steps"], batch_size=self._options["batch_size"],
                learning_rate=self._options["learning_rate"], seed=self._options["seed"], score_holdout=False,
                progress=False,
            )  # fmt: skip
            return self._scores(self._logits(changed, self._holdout.inputs()))
        shared = shared_names(changed, self._form_of_original)
        names = crossing_names(changed, shared)
        if self._calibration.is_affordable(names) and self._holdout.is_affordable(names):
            changed = split_suffix(changed, shared)
            calibration, holdout = self._calibration.values(names), self._holdout.values(names)
        else:
            calibration, holdout = self._calibration.inputs(), self._holdout.inputs()
        with averaging_batch_norm(changed):
            for values in calibration:
                changed(*values)
        return self._scores(self._logits(changed, holdout))

    def _form(
        self, act_pos: Iterable[int], merge_pos: Iterable[int], dropped: Sequence[int] = ()
    ) -> fx.GraphModule:
        stops = tuple(merge_pos)
        kept = [layer.index for layer in self._net.layers if layer.index not in dropped] if dropped else None
        solution = Solution(act_pos=tuple(p for p in act_pos if p in set(stops)), merge_pos=stops,
                            kept_layers=None if kept is None else tuple(kept))
        return build_train_form(self._model, self._net, solution).eval()

    @staticmethod
    def _logits(network: nn.Module, batches: list[tuple[Tensor, ...]]) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(*values) for values in batches])

    def _scores(self, logits: Tensor) -> _Scores:
        answers = logits.argmax(1)
        return {
            "val_acc": 100.0 * float((answers == self._labels).double().mean()),
            "val_loss": float(F.cross_entropy(logits, self._labels)),
            "agreement": 100.0 * float((answers == self._answers).double().mean()),
        }


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
