"""Whether a network answers each image by itself: it is scored in batches of one size and exported for another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerfold.errors import UsageError
from layerfold.graph.same_function import OTHER, Agreement, Images, eval_copy, parts, run
from layerfold.modules import inputs_like

_FEWEST_IMAGES = 2


def check_alone(model: nn.Module, images: Tensor | Images) -> None:
    """Refuse a model whose answer to one image depends on the others of its batch.

    Parts of an answer that have no row for each image are not compared; nor is a model that does not run on these
    images.

    Args:
        model: left untouched; a copy runs on the CPU in eval mode, on all images and on each.
        images: [N, C, H, W], or a tuple of the model's inputs; with fewer than two nothing is compared.

    Raises:
        UsageError: it does.
    """
    inputs = images if isinstance(images, tuple) else (images,)
    if not inputs[0].dim() or len(inputs[0]) < _FEWEST_IMAGES:
        return
    reference = eval_copy(model).cpu()
    inputs = inputs_like(reference, inputs)
    together = _Rows(reference)
    try:
        expected = run(together, inputs)
    except Exception:  # made for one batch size alone
        return
    alone = _RowsOfEach(together)
    try:
        found = run(alone, inputs)
        # A table with as many rows as there are images by chance stays whole for one image; an answer of one tensor
        # is no table.
        together.paths = {
            path for path in expected if not path or (path in found and found[path].shape == expected[path].shape)
        }
        expected, found = ({path: rows[path] for path in together.paths} for rows in (expected, found))
        reason = Agreement(together, alone).reason([inputs], [expected], [found]) if together.paths else ""
    except Exception:  # not made for a single image, as with BatchNorm of the batch behind a pooling
        reason = OTHER
    if reason == OTHER:
        raise UsageError(
            f"model {type(model).__name__}: answers an image otherwise alone than beside others, so its scores would "
            "not hold for the exported network; normalise each image by itself, or give BatchNorm running statistics"
        )


def one_of(inputs: Images, index: int) -> Images:
    """Return one image of a batch, as a batch."""
    count = len(inputs[0]) if inputs[0].dim() else 1
    return tuple(value[index : index + 1] if value.dim() and len(value) == count else value for value in inputs)


class _Rows(nn.Module):
    """A network that gives of its answer what has a row for each image, by where it stands: [images, numbers].

    Attributes:
        paths: all that is given, or None for whatever looks like rows.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.paths: set[str] | None = None

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = {}
        for path, value in parts(self.model(*inputs)):
            is_wanted = self.paths is None or path in self.paths
            if is_wanted and isinstance(value, Tensor) and value.dim() and len(value) == len(inputs[0]):
                found[path] = value.reshape(len(value), -1)
        return found


class _RowsOfEach(nn.Module):
    """The same of images given one at a time."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for index in range(len(inputs[0])):
            for path, value in parts(self.rows.model(*one_of(inputs, index))):
                if isinstance(value, Tensor) and (self.rows.paths is None or path in self.rows.paths):
                    found.setdefault(path, []).append(value.reshape(-1))  # some squeeze the answer to a single image
        return {
            path: torch.stack(values) for path, values in found.items() if len({each.shape for each in values}) == 1
        }
