"""One training run: what it needs, where it stands, and the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerfold.data import BatchLoader, ImageData, Share
from layerfold.errors import DivergenceError, UsageError
from layerfold.files import JsonObject
from layerfold.finetune._answers import check_answers, first_images
from layerfold.finetune._averaging import AveragedWeights
from layerfold.finetune._checkpoint import (
    TrainingParts,
    TrainingState,
    copied_weights,
    damaged,
    mark_diverged,
    network_hash,
    read_checkpoint,
    write_checkpoint,
)
from layerfold.finetune._layout import channels_last
from layerfold.finetune._log import EpochLog
from layerfold.finetune._memory import is_out_of_memory
from layerfold.finetune._mixing import BatchMixer
from layerfold.finetune._objective import Objective
from layerfold.finetune._optimizers import make_optimizer
from layerfold.finetune._processes import sum_over_processes
from layerfold.finetune._report import EpochRow, FinetuneReport, best_epoch
from layerfold.finetune._scores import Scores, check_labels, evaluate_together
from layerfold.finetune._shared_norm import SharedBatchNorm
from layerfold.options.finetune import FinetuneOptions, RunOptions
from layerfold.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Network to be trained, data and options, as ``train_network`` was given them.

    Attributes:
        model: on the accelerator's device.
        data: its train split is learned.
        options: how to train.
        run: where, and what is kept.
        teacher: on the accelerator's device, in eval mode, or None.
        features: pairs of nodes whose values are compared.
        before_step: called before each step.
        settings: what decides the outcome beside the options.
    """

    model: nn.Module
    data: ImageData
    options: FinetuneOptions
    run: RunOptions
    teacher: nn.Module | None
    features: Sequence[tuple[str, str]]
    before_step: Callable[[int, int], None] | None
    settings: Mapping[str, Any]


class Run:
    """A training run, begun or resumed.

    Args:
        job: what is to be done.
        loader: batches of the train split.
        accelerator: Accelerate's.
        log: where epochs are written down.
    """

    def __init__(self, job: TrainingJob, loader: BatchLoader, accelerator: Any, log: EpochLog) -> None:
        model, data, options, teacher, run = job.model, job.data, job.options, job.teacher, job.run
        path = None if run.checkpoint_path is None else Path(run.checkpoint_path)
        self._model, self._data, self._options, self._loader = model, data, options, loader
        self._accelerator, self._path, self._log = accelerator, path, log
        self._before_step, self._run = job.before_step, run
        self._tracks_best = run.keep_other or options.keep == "best"
        self.total_steps = options.steps or options.epochs * len(loader)
        self._teacher = teacher
        self._objective = Objective(options, model, teacher, job.features, is_labelled=data.is_labelled)
        images = first_images(data)
        # Statistics that lag behind may overflow where those of a batch, in training, do not: that is seen later.
        self._num_outputs = check_answers(model, images, needs_finite=False)
        if self._objective.is_teaching:
            assert teacher is not None
            _check_teacher(check_answers(teacher, images, argument="teacher", needs_finite=False), self._num_outputs)
        self._mixer = BatchMixer(options, self._num_outputs) if options.is_mixed else None
        self._prepared, self._optimizer = accelerator.prepare(self._objective.student, make_optimizer(model, options))
        self._average = AveragedWeights(model, options.ema_decay) if options.ema_decay is not None else None
        self._config: JsonObject = {}
        if path is not None:
            self._config = {
                **job.settings,
                **options.deciding(),
                "model": network_hash(model),
                "data": data.fingerprint,
                "teacher": network_hash(teacher) if teacher is not None else None,
                "keep_other": run.keep_other,
            }
        self.state = TrainingState()
        if path is not None and path.exists():
            self._resume(path)
        self._check_same_checkpoint()
        self.resumed_from_step = self.state.step
        self._good_weights, self._good_step = copied_weights(self._kept), self.state.step
        self._other_weights: dict[str, Tensor] | None = None
        self._latest_images: Tensor | None = None

    @property
    def _kept(self) -> dict[str, Tensor]:
        """The weights that are scored and kept."""
        return self._model.state_dict() if self._average is None else self._average.state

    def train(self, bar: Progress) -> None:
        """Run from where the state stands to the end; the model then holds the weights to keep."""
        state = self.state
        saved_at = time.monotonic()
        while state.step < self.total_steps:
            self._loader.set_epoch(state.epoch)
            began = time.monotonic() - state.epoch_seconds
            self._model.train()
            for images, labels in self._batches():
                if self._before_step is not None:
                    self._before_step(state.step, self.total_steps)
                is_due = self._path is not None and time.monotonic() - saved_at > self._run.checkpoint_every_s
                loss, is_due = self._step(images, labels, is_due)
                state.loss_sum += loss
                state.step += 1
                state.batch += 1
                if self._average is not None:
                    self._average.update(state.step)
                bar.advance()
                if state.step == self.total_steps:
                    break
                if is_due:
                    state.epoch_seconds = time.monotonic() - began
                    self._check_weights()
                    self._save()
                    saved_at = time.monotonic()
            self._check_weights()
            self._end_epoch(began)
            # First what goes on, then what tells: a log without a checkpoint would look like that of another run.
            self._save()
            self._log.write(self.state.history)
            saved_at = time.monotonic()
        self._finish()

    def _batches(self) -> Any:
        accelerator = self._accelerator
        if accelerator.num_processes == 1:
            return self._loader.starting_at(self.state.batch)
        return self._loader.starting_at(self.state.batch, Share(accelerator.process_index, accelerator.num_processes))

    def _step(self, images: Tensor, labels: Tensor, is_due: bool) -> tuple[float, bool]:
        """Take one step; return the loss over all processes, and whether a checkpoint is due in the main one."""
        options, accelerator, step = self._options, self._accelerator, self.state.step
        rate = options.learning_rate_at(step, self.total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if self._data.is_labelled:
            check_labels(labels, self._num_outputs, f"step {step + 1}, image")
        else:
            labels = torch.zeros_like(labels)  # whoever mixes them needs a class; nothing learns it
        device = accelerator.device
        images, targets = channels_last(images.to(device)), labels.to(device)
        # Dropout draws from torch's generator: each step and process begins with a seed of its own.
        torch.manual_seed(_seed_of(options.seed, step, accelerator.process_index))
        if self._mixer is not None:
            images, targets = self._mixer.mix(images, targets, step)
        if accelerator.num_processes == 1:
            outputs = self._prepared(images)
        else:
            with SharedBatchNorm():
                outputs = self._prepared(images)
        loss = self._objective(outputs, images, targets, accelerator)
        if not loss.requires_grad:
            raise UsageError(
                f"model: none of the parameters that its answers depend on trains at step {step + 1}; "
                "unfreeze them (unfreeze_parameters, --unfreeze)"
            )
        if accelerator.num_processes > 1:
            # Gradients are averaged over the processes: the mean over all images, however many each has.
            loss = loss * (len(labels) * accelerator.num_processes / self._rows_a_step)
        value, due = sum_over_processes(
            [float(loss.detach()) / accelerator.num_processes, is_due and accelerator.is_main_process], accelerator
        )
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value} at step {step + 1}")
        self._latest_images = images
        self._optimizer.zero_grad()
        accelerator.backward(loss)
        if options.grad_clip_norm is not None:
            accelerator.clip_grad_norm_(self._model.parameters(), options.grad_clip_norm)
        self._optimizer.step()
        return value, bool(due)

    def _check_weights(self) -> None:
        """Raise where the last step has spoiled the weights, which its own loss, taken before it, does not show."""
        if self._latest_images is None:
            return  # resumed at an epoch's end
        (num_bad,) = sum_over_processes([not self._is_finite_on(self._latest_images)], self._accelerator)
        if num_bad:
            raise self._diverged(f"the network's answers are not finite after step {self.state.step}")

    def _is_finite_on(self, images: Tensor) -> bool:
        with torch.no_grad():
            self._model.eval()
            is_finite = bool(self._model(images).isfinite().all())
            self._model.train()
            if is_finite:
                return True
            # BatchNorm statistics that lag behind may overflow where those of the batch, as in training, do not.
            before = copied_weights(self._model.state_dict())
            with torch.random.fork_rng(devices=[]):
                is_finite = bool(self._model(images).isfinite().all())
            self._model.load_state_dict(before)
            return is_finite

    def _diverged(self, what: str) -> DivergenceError:
        """Go back to the last good state; return the error to raise."""
        self._model.load_state_dict(self._good_weights)
        kept = f"the model holds the weights of step {self._good_step} again"
        remedy = f"lower learning_rate={self._options.highest_learning_rate:g}"
        if self._path is not None and self._path.exists():
            kept = f"{self._path} holds the state of step {self._good_step}"
            remedy += ", which goes on from there, or delete the file too, to start over"
            if self._accelerator.is_main_process:
                mark_diverged(self._path)
        return DivergenceError(f"finetuning: {what} of {self.total_steps}; {kept}; {remedy}")

    @property
    def _rows_a_step(self) -> int:
        # Only a split that is smaller than a batch has another last batch: the loader drops it.
        return min(self._options.batch_size, self._loader.num_images)

    def _end_epoch(self, began: float) -> None:
        state = self.state
        scores = self._scores() if self._run.score_holdout else None
        row = EpochRow(
            epoch=state.epoch + 1,
            steps=state.step,
            train_loss=state.loss_sum / max(state.batch, 1),
            holdout_accuracy_pct=scores.accuracy_pct if scores else None,
            holdout_loss=scores.loss if scores else None,
            learning_rate=self._options.learning_rate_at(state.step - 1, self.total_steps),
            seconds=time.monotonic() - began,
            holdout_agreement_pct=scores.agreement_pct if scores else None,
        )
        state.history.append(row)
        if self._tracks_best and best_epoch(state.history) == row.epoch:
            state.best_weights = copied_weights(self._kept)
        state.epoch, state.batch, state.loss_sum, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0

    def _scores(self) -> Scores:
        holdout = self._data.split("holdout")
        teacher = None if self._data.is_labelled else self._teacher
        if self._average is None:
            return evaluate_together(self._model, holdout, self._accelerator, teacher=teacher)
        with self._average.applied():
            return evaluate_together(self._model, holdout, self._accelerator, teacher=teacher)

    def _finish(self) -> None:
        last, best = self._kept, self.state.best_weights
        is_best_kept = self._options.keep == "best" and best is not None
        if self._tracks_best:
            self._other_weights = copied_weights(last) if is_best_kept else best
        if is_best_kept or self._average is not None:
            self._model.load_state_dict(best if is_best_kept and best is not None else last)

    def _save(self) -> None:
        self._good_weights, self._good_step = copied_weights(self._kept), self.state.step
        if self._path is not None and self._accelerator.is_main_process:
            scaler = self._accelerator.scaler
            write_checkpoint(
                self._path,
                self._config,
                self.state,
                TrainingParts(
                    model=copied_weights(self._model.state_dict()),
                    optimizer=self._optimizer.state_dict(),
                    average=None if self._average is None else copied_weights(self._average.state),
                    scaler=None if scaler is None else scaler.state_dict(),
                ),
            )

    def _resume(self, path: Path) -> None:
        parts, state = read_checkpoint(path, self._config)
        if state.step > self.total_steps or state.batch > len(self._loader):
            raise damaged(path, f"step {state.step} of {self.total_steps}")
        try:
            self._model.load_state_dict(parts.model)
            self._optimizer.load_state_dict(parts.optimizer)
            if self._average is not None:
                if parts.average is None:
                    raise KeyError("average")
                self._average.load(parts.average)
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(parts.scaler)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise damaged(path, " ".join(str(error).split())[:100]) from error
        self.state = state
        if state.history and self._accelerator.is_main_process:
            self._log.restore(self.state.history)  # the run may have ended between its checkpoint and its log

    def _check_same_checkpoint(self) -> None:
        number = self._accelerator.num_processes
        (total,) = sum_over_processes([self.state.step], self._accelerator)
        # Every process sees the sum, but only where it is not its own step times all does one know that they differ.
        (num_other,) = sum_over_processes([total != number * self.state.step], self._accelerator)
        if num_other:
            raise UsageError(
                f"checkpoint_path={self._path}: not every process finds the same file there; put it on a "
                "disk that all machines see, or delete it to start over"
            )

    def release(self) -> None:
        """Take Accelerate's wrappers off; the model is then in eval mode, without gradients."""
        self._accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False)
        self._model.eval()
        for parameter in self._model.parameters():
            parameter.grad = None

    def report(self) -> FinetuneReport:
        """Return the history."""
        rows = self.state.history
        best = best_epoch(rows)
        kept = best if self._options.keep == "best" and best is not None else rows[-1].epoch
        return FinetuneReport(
            history=tuple(rows),
            best_epoch=best,
            kept_epoch=kept,
            steps=self.state.step,
            resumed_from_step=self.resumed_from_step,
            seconds=sum(row.seconds for row in rows),
            options=asdict(self._options),
            other_weights=self._other_weights,
        )


def _check_teacher(num_outputs: int, expected: int) -> None:
    if num_outputs != expected:
        raise UsageError(
            f"teacher: has {num_outputs} outputs, the model {expected}; distillation compares them one by "
            "one; give a teacher with as many, or none"
        )


def _seed_of(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process, 4)).generate_state(1, np.uint64)[0])
