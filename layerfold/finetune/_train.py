"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerfold.data import BatchLoader, ImageData
from layerfold.errors import DeviceUnavailableError, FinetuneError, UsageError
from layerfold.finetune._checkpoint import (
    TrainingState,
    network_hash,
    read_checkpoint,
    weights_of,
    write_checkpoint,
)
from layerfold.finetune._modes import channels_last, device_of, modes_kept
from layerfold.finetune._options import FinetuneOptions, OptimizerName
from layerfold.finetune._report import EpochRow, FinetuneReport, best_epoch
from layerfold.finetune._scores import check_labels, evaluate_network
from layerfold.graph.fading import fade_to, fading_activations, remove_fading
from layerfold.progress import Progress, progress_bar


def finetune_network(
    model: nn.Module,
    data: ImageData,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 128,
    optimizer: OptimizerName = "sgd",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    distillation_weight: float = 0.5,
    temperature: float = 2.0,
    grad_clip_norm: float | None = 5.0,
    augment: bool = True,
    keep: Literal["last", "best"] = "last",
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
    seed: int = 0,
    fade: float = 0.0,
    score_holdout: bool = True,
    checkpoint_path: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    device: str = "cpu",
    progress: bool = True,
    description: str = "Finetuning",
) -> FinetuneReport:
    """Train a network in place; afterwards it is in eval mode, on the device it came from.

    With a teacher the loss is (1 - w) * cross-entropy + w * T^2 * KL(teacher || student), both softened by the
    temperature T (Hinton et al., Distilling the Knowledge in a Neural Network, 2015). One process; Accelerate
    places tensors and does mixed precision.

    Args:
        model: images to logits; the train form of a compressed network, or any other network.
        data: its train split is learned, its holdout scored after every epoch.
        teacher: the original network; left as it is.
        epochs ... seed: see ``FinetuneOptions``.
        fade: share of the steps, 0..1, over which the activations that :func:`add_fading` put into a train form fade to
            nothing. Afterwards they are taken out; with 0 at once.
        score_holdout: False saves the time of scoring (then ``keep`` must be ``last``).
        checkpoint_path: file that holds the state of the run; if it exists the run goes on from it, and ends as it
            would have without the interruption.
        checkpoint_every_s: seconds between two writes of it within an epoch; it is also written after each epoch.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        progress: show a bar with an ETA on stderr.
        description: the text beside the bar.

    Raises:
        DataError: no train split, or a label outside the model's classes.
        DeviceUnavailableError: torch does not find the device.
        FinetuneError: the loss is not finite; the model then holds the last good weights.
        UsageError: an option outside its range, or a checkpoint of another run.
    """
    options = FinetuneOptions(
        epochs=epochs, steps=steps, batch_size=batch_size, optimizer=optimizer, learning_rate=learning_rate,
        weight_decay=weight_decay, warmup=warmup, label_smoothing=label_smoothing,
        distillation_weight=distillation_weight, temperature=temperature, grad_clip_norm=grad_clip_norm,
        augment=augment, keep=keep, mixed_precision=mixed_precision, seed=seed,
    )
    _check_fade(model, fade, options)
    try:
        report = train_network(
            model, data, options, teacher=teacher, score_holdout=score_holdout, checkpoint_path=checkpoint_path,
            checkpoint_every_s=checkpoint_every_s, device=device, progress=progress, description=description,
            before_step=_fading_steps(model, fade) if fade else None, settings={"fade": fade} if fade else None,
        )
    finally:
        fade_to(model, 1.0)
    remove_fading(model)
    return report


def _check_fade(model: nn.Module, fade: float, options: FinetuneOptions) -> None:
    if not 0 <= fade <= 1:
        raise UsageError(f"fade={fade!r}: must be within 0..1")
    if fade and next(fading_activations(model), None) is None:
        raise UsageError(f"fade={fade!r}: no activation fades in this network; add them (add_fading) to the train "
                         "form of a solution that removes some, or leave fade out")
    if fade and options.keep == "best":
        raise UsageError("keep='best': epochs in which activations fade cannot be compared; use keep='last' with fade")


def _fading_steps(model: nn.Module, fade: float) -> Callable[[int, int], None]:
    def before_step(step: int, total_steps: int) -> None:
        fade_to(model, min(1.0, step / (fade * total_steps)))

    return before_step


def train_network(
    model: nn.Module,
    data: ImageData,
    options: FinetuneOptions,
    *,
    teacher: nn.Module | None = None,
    before_step: Callable[[int, int], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    score_holdout: bool = True,
    checkpoint_path: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    device: str = "cpu",
    progress: bool = True,
    description: str = "Training",
) -> FinetuneReport:
    """Train a network in place, as :func:`finetune_network` does, which says what is not said here.

    Args:
        options: how to train.
        before_step: called before each step with the steps done and the steps in all, for what changes on the way.
            It must depend on nothing but these and the model's state, or a resumed run would end otherwise.
        settings: plain values that decide the outcome beside the options; a checkpoint made with others is refused.
    """
    if options.keep == "best" and not score_holdout:
        raise UsageError("keep='best': needs the holdout's scores; leave score_holdout=True")
    loader = data.loader(
        "train", options.batch_size, shuffle=True, augment=options.augment, seed=options.seed, drop_last=True
    )
    path = Path(checkpoint_path) if checkpoint_path is not None else None
    home = device_of(model)
    # Dropout draws from torch's global generator: seeded for the run, and given back as it was.
    with torch.random.fork_rng(devices=_cuda_devices(device)):
        torch.manual_seed(options.seed)
        run = _Run(
            model, data, teacher, loader, options, path, device, score_holdout, before_step, dict(settings or {})
        )
        try:
            with progress_bar(description, run.total_steps, enabled=progress, done=run.state.step) as bar:
                run.train(bar, checkpoint_every_s)
        finally:
            run.release(home)
    return run.report()


class _Run:
    """One training run: what it needs, and where it stands."""

    def __init__(
        self, model: nn.Module, data: ImageData, teacher: nn.Module | None, loader: BatchLoader,
        options: FinetuneOptions, path: Path | None, device: str, score_holdout: bool,
        before_step: Callable[[int, int], None] | None, settings: dict[str, Any],
    ) -> None:
        from timm.optim._optim_factory import create_optimizer_v2

        self._data, self._loader, self._options, self._path = data, loader, options, path
        self._score_holdout, self._before_step = score_holdout, before_step
        self.total_steps = options.steps or options.epochs * len(loader)
        self._config: dict[str, Any] = {}
        if path is not None:
            self._config = {**settings, **asdict(options), "model": network_hash(model), "data": data.fingerprint,
                            "teacher": network_hash(teacher) if teacher is not None else None}
        self._accelerator = _accelerator(device, options.mixed_precision)
        self._teacher, self._teacher_home = teacher, device_of(teacher) if teacher is not None else None
        if teacher is not None:
            teacher.to(self._accelerator.device)
        self._model = model.to(self._accelerator.device)
        weight_rate = options.highest_learning_rate
        made = create_optimizer_v2(model, options.optimizer, lr=weight_rate, momentum=0.9,
                                   weight_decay=options.actual_weight_decay)
        self._prepared, self._optimizer = self._accelerator.prepare(model, made)
        self.state = TrainingState()
        if path is not None and path.exists():
            self._resume(path)
        self.resumed_from_step = self.state.step
        self._good_weights, self._good_step = weights_of(model), self.state.step

    def train(self, bar: Progress, checkpoint_every_s: float) -> None:
        """Run from where the state stands to the end."""
        state = self.state
        with modes_kept(self._teacher if self._teacher is not None else nn.Identity()):
            if self._teacher is not None:
                self._teacher.eval()
            saved_at = time.monotonic()
            while state.step < self.total_steps:
                self._loader.set_epoch(state.epoch)
                began = time.monotonic() - state.epoch_seconds
                self._model.train()
                rate = 0.0
                for images, labels in self._loader.starting_at(state.batch):
                    rate = self._options.learning_rate_at(state.step, self.total_steps)
                    if self._before_step is not None:
                        self._before_step(state.step, self.total_steps)
                    state.loss_sum += self._step(images, labels, rate)
                    state.step += 1
                    state.batch += 1
                    bar.advance()
                    if state.step == self.total_steps:
                        break
                    if self._path is not None and time.monotonic() - saved_at > checkpoint_every_s:
                        state.epoch_seconds = time.monotonic() - began
                        self._save()
                        saved_at = time.monotonic()
                self._end_epoch(began, rate)
                self._save()
                saved_at = time.monotonic()
        if self._options.keep == "best" and state.best_weights is not None:
            self._model.load_state_dict(state.best_weights)

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        device = self._accelerator.device
        images, labels = channels_last(images.to(device)), labels.to(device)
        logits = self._prepared(images)
        if self.state.step == self.resumed_from_step:
            check_labels(labels, logits.shape[1])
        loss = self._loss(logits, images, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._model.load_state_dict(self._good_weights)
            raise FinetuneError(
                f"finetuning: the loss is {value} at step {self.state.step + 1} of {self.total_steps}; the model holds "
                f"the weights of step {self._good_step} again; lower learning_rate="
                f"{self._options.highest_learning_rate:g}"
            )
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        if self._options.grad_clip_norm is not None:
            self._accelerator.clip_grad_norm_(self._model.parameters(), self._options.grad_clip_norm)
        self._optimizer.step()
        return value

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        options = self._options
        loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        if self._teacher is None or options.distillation_weight == 0:
            return loss
        with torch.no_grad(), self._accelerator.autocast():
            expected = self._teacher(images)
        return (1 - options.distillation_weight) * loss + options.distillation_weight * distillation_loss(
            logits, expected, options.temperature
        )

    def _end_epoch(self, began: float, rate: float) -> None:
        state = self.state
        scores = evaluate_network(self._model, self._data.split("holdout")) if self._score_holdout else None
        row = EpochRow(
            epoch=state.epoch + 1, steps=state.step, train_loss=state.loss_sum / max(state.batch, 1),
            holdout_accuracy_pct=scores.accuracy_pct if scores else None,
            holdout_loss=scores.loss if scores else None,
            learning_rate=rate, seconds=time.monotonic() - began,
        )
        state.history.append(asdict(row))
        if self._options.keep == "best" and best_epoch(self._rows()) == row.epoch:
            state.best_weights = weights_of(self._model)
        state.epoch, state.batch, state.loss_sum, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0

    def _save(self) -> None:
        self._good_weights, self._good_step = weights_of(self._model), self.state.step
        if self._path is not None:
            write_checkpoint(self._path, self._config, self.state, self._model, self._optimizer)

    def _resume(self, path: Path) -> None:
        content = read_checkpoint(path, self._config)
        self._model.load_state_dict(content["model"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.state = TrainingState(**content["state"])
        torch.set_rng_state(content["torch_rng"])

    def release(self, home: torch.device) -> None:
        """Take Accelerate's wrappers off, and put both networks back where they came from."""
        self._accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False)
        self._model.to(home).eval()
        for parameter in self._model.parameters():
            parameter.grad = None
        if self._teacher is not None:
            self._teacher.to(self._teacher_home)

    def report(self) -> FinetuneReport:
        """Return the history."""
        rows = self._rows()
        best = best_epoch(rows)
        kept = best if self._options.keep == "best" and best is not None else rows[-1].epoch
        return FinetuneReport(
            history=tuple(rows), best_epoch=best, kept_epoch=kept, steps=self.state.step,
            resumed_from_step=self.resumed_from_step, seconds=sum(row.seconds for row in rows),
            options=asdict(self._options),
        )

    def _rows(self) -> list[EpochRow]:
        return [EpochRow(**row) for row in self.state.history]


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of distributions softened by ``temperature``, mean over the batch.

    Args:
        logits: the student's [batch, classes].
        expected: the teacher's [batch, classes].
        temperature: above 0.
    """
    student = (logits.float() / temperature).log_softmax(1)
    teacher = (expected.float() / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _accelerator(device: str, mixed_precision: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps one state a process and refuses another precision or device; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceUnavailableError(f"device={device!r}: torch finds no CUDA device; use device='cpu'")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)


def _cuda_devices(device: str) -> list[int]:
    return list(range(torch.cuda.device_count())) if device != "cpu" else []
