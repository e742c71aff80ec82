"""Images and labels: three splits as torch Datasets, and batches fast enough for two cores."""

from __future__ import annotations

from layerfold.data._encoded import reason_of
from layerfold.data._image_data import ImageData
from layerfold.data._loader import BatchLoader, Share
from layerfold.data._open import open_data
from layerfold.data._splits import Split
from layerfold.data._stored import UNLABELLED
from layerfold.data.preprocessing import Preprocessing

__all__ = ["UNLABELLED", "BatchLoader", "ImageData", "Preprocessing", "Share", "Split", "open_data", "reason_of"]
