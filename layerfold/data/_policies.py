"""timm's augmentation policies and random erasing, with the same result for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerfold.data.preprocessing import Preprocessing
from layerfold.errors import UsageError, nearest_names

_FAMILIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")
_RULES: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]] = {
    "m": (int, lambda value: 0 <= value <= 30, "m0 to m30, a whole number"),
    "n": (int, lambda value: 1 <= value <= 14, "n1 to n14, a whole number"),
    "p": (float, lambda value: 0 <= value <= 1, "p0 to p1"),
    "mstd": (float, lambda value: 0 <= value < float("inf"), "mstd0 or more (above 100: uniform)"),
    "mmax": (int, lambda value: value >= 1, "mmax1 or more, a whole number"),
    "inc": (int, lambda value: value in (0, 1), "inc0 or inc1"),
    "w": (int, lambda value: 1 <= value <= 16, "w1 to w16, a whole number"),
    "d": (int, lambda value: 1 <= value <= 16, "d1 to d16, a whole number"),
    "a": (float, lambda value: 0 < value < float("inf"), "a above 0"),
    "b": (int, lambda value: value in (0, 1), "b0 or b1"),
}
_SECTIONS = {"rand": ("m", "n", "p", "mstd", "mmax", "inc"), "augmix": ("m", "w", "d", "a", "b", "mstd")}
_CHOICES = ("weights", "3a", "3aw")
# What Pillow's affine transforms know.
_AFFINE_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of a batch of training images.

    Attributes:
        is_cropped: whether they are cropped and mirrored at random.
        policy: timm's name of a policy applied after that, for example ``rand-m9-mstd0.5-inc1``; None for none.
        random_erasing: share of the images, once normalised, that lose a rectangle to noise; 0..1.
    """

    is_cropped: bool = False
    policy: str | None = None
    random_erasing: float = 0.0

    @property
    def is_nothing(self) -> bool:
        return self == Augmentation()

    @property
    def draws_globally(self) -> bool:
        """Whether it draws from the process's global generators, as timm's code does."""
        return self.policy is not None or self.random_erasing > 0


def parse_augmentation(augment: bool | str, random_erasing: float = 0.0) -> Augmentation:
    """Read the arguments of a loader.

    Args:
        augment: False or ``"none"``; True or ``"crop"`` for random crops and mirroring; or one of timm's policies,
            which comes after them: ``rand-...``, ``augmix-...``, ``original``, ``originalr``, ``v0``, ``v0r``, ``3a``.
        random_erasing: probability, 0..1.

    Raises:
        UsageError: an unknown policy or section of one, or a number outside its range.
    """
    if not 0 <= random_erasing <= 1:
        raise UsageError(f"random_erasing={random_erasing}: must be a probability within 0..1")
    named = augment if isinstance(augment, str) else "crop" if augment else "none"
    if named in ("none", "crop"):
        return Augmentation(is_cropped=named == "crop", random_erasing=random_erasing)
    _check_policy(named)
    return Augmentation(is_cropped=True, policy=named, random_erasing=random_erasing)


def _check_policy(policy: str) -> None:
    """Check what timm would ignore, or trip over in the middle of an epoch."""
    family, *sections = policy.split("-")
    if family not in _FAMILIES:
        known = ("none", "crop", *_FAMILIES)
        raise UsageError(
            f"augment={policy!r}: unknown; give none, crop or one of timm's policies, "
            f"{', '.join(_FAMILIES)}, for example rand-m9-mstd0.5-inc1{nearest_names(family, known)}"
        )
    allowed = _SECTIONS.get(family, ("mstd",))
    for section in sections:
        if family == "rand" and section.startswith("t"):
            if section[1:] not in _CHOICES:
                raise UsageError(f"augment={policy!r}: section {section!r}: must be t and one of {', '.join(_CHOICES)}")
            continue
        name = section.rstrip("0123456789.")
        if name not in allowed:
            raise UsageError(
                f"augment={policy!r}: unknown section {section!r}; {family} knows "
                f"{', '.join(allowed)}, each with a number after it{nearest_names(name, allowed)}"
            )
        kind, is_allowed, rule = _RULES[name]
        try:
            is_good = is_allowed(kind(section[len(name) :]))
        except ValueError:
            is_good = False
        if not is_good:
            raise UsageError(f"augment={policy!r}: section {section!r}: must be {rule}")


def apply_policy(
    images_NHWC: NDArray[np.uint8], policy: str, preprocessing: Preprocessing, seed: int
) -> NDArray[np.uint8]:
    """Return uint8 images of the same shape, each changed by timm's policy."""
    from PIL import Image

    transform = _policy_transform(policy, preprocessing.input_shape, preprocessing.mean, preprocessing.interpolation)
    changed = np.empty_like(images_NHWC)
    with global_generators_seeded(seed):
        for index, pixels in enumerate(images_NHWC):
            image = Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0])
            changed[index] = np.asarray(transform(image)).reshape(pixels.shape)
    return changed


def erase_randomly(images: Tensor, probability: float, seed: int) -> None:
    """Fill a rectangle in some of the images, float [batch, channels, height, width], with normal noise, in place.

    2 to 33 % of the area, sides 3:10 to 10:3, as in timm (Zhong et al., *Random Erasing Data Augmentation*, 2017).
    """
    from timm.data.random_erasing import RandomErasing

    with global_generators_seeded(seed):
        erase: Callable[[Tensor], Tensor] = RandomErasing(probability, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
        erase(images)


@lru_cache(maxsize=8)
def _policy_transform(
    policy: str, input_shape: tuple[int, int, int], mean: tuple[float, ...], interpolation: str
) -> Callable[[Any], Any]:
    from timm.data.transforms_factory import transforms_imagenet_train

    # timm's three stages: crops, policy, normalisation. Its parameters of a policy depend on size and mean.
    _, transform, _ = transforms_imagenet_train(
        img_size=input_shape[1:],
        auto_augment=policy,
        color_jitter=0.0,
        mean=mean,
        separate=True,
        interpolation=interpolation if interpolation in _AFFINE_INTERPOLATIONS else "random",
    )
    for step in transform.transforms:
        for operation in chain(getattr(step, "ops", ()), *getattr(step, "policy", ())):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    made: Callable[[Any], Any] = transform
    return made


def _posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Do as timm's operation does, but keep a bit: at its strongest timm asks for none, which Pillow 13 refuses."""
    from PIL import ImageOps

    return ImageOps.posterize(image, min(max(bits_to_keep, 1), 8))


@contextmanager
def global_generators_seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators (CPU), and give them back as they were."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
