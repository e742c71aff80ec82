"""timm's policies and erasing: the same seed gives the same batch, whoever makes it and wherever the epoch goes on."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms import RandomResizedCrop

from layerfold.data import ImageData, open_data
from layerfold.data._augmentation import random_windows, resized_crops
from layerfold.data._policies import Augmentation, apply_policy, erase_randomly, parse_augmentation
from layerfold.data.preprocessing import Preprocessing
from layerfold.errors import UsageError

_POLICIES = (
    "rand-m9-mstd0.5-inc1",
    "rand-m10-n14-tweights",
    "rand-m2",
    "augmix-m10-w2-d2-b1",
    "augmix",
    "original",
    "originalr-mstd0.5",
    "v0",
    "v0r",
    "3a",
)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Return 500 noisy test images of two classes."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(500):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, format="png")
        pictures.append(stream.getvalue())
    for name in ("train", "test"):
        pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 250}), folder / f"{name}.parquet")
    return open_data(f"parquet:{folder}", input_shape=(3, 16, 16))


def preprocessing(channels: int, interpolation: str = "bicubic") -> Preprocessing:
    values = (0.5,) * channels
    return Preprocessing(input_shape=(channels, 24, 20), mean=values, std=values, interpolation=interpolation)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", _POLICIES)
def test_policy_changes_pixels_by_the_seed_alone(policy: str, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 24, 20, channels), dtype=np.uint8)
    first, again, other = (apply_policy(images, policy, preprocessing(channels), seed) for seed in (3, 3, 4))
    assert first.shape == images.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, images)


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_policy_works_with_every_interpolation(interpolation: str) -> None:
    images = np.full((40, 24, 20, 3), 7, dtype=np.uint8)
    apply_policy(images, "rand-m9-n6-p1", preprocessing(3, interpolation), 0)


def test_policy_is_timms_own() -> None:
    from timm.data.auto_augment import rand_augment_transform

    images = np.random.default_rng(0).integers(0, 256, (30, 24, 20, 3), dtype=np.uint8)
    transform = rand_augment_transform(
        "rand-m9-inc1", {"translate_const": 9, "img_mean": (128,) * 3, "interpolation": Image.Resampling.BICUBIC}
    )
    before = random.getstate(), np.random.get_state()
    random.seed(5)
    np.random.seed(5)
    expected = [np.asarray(transform(Image.fromarray(pixels))) for pixels in images]
    random.setstate(before[0])
    np.random.set_state(before[1])
    assert np.array_equal(apply_policy(images, "rand-m9-inc1", preprocessing(3), 5), expected)


@pytest.mark.parametrize("options", [{"augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}, {"random_erasing": 1}])
def test_epoch_can_go_on_in_its_middle_with_the_same_batches(
    noise: ImageData, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = noise.loader("test", 50, shuffle=True, seed=3, **options)  # type: ignore[arg-type]
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    whole = list(loader)
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    loader.set_epoch(0)
    rest = list(loader.starting_at(7))
    # Where no worker process may be started, the caller's makes the same batches, and its generators are left alone.
    monkeypatch.setattr("layerfold.data._workers.num_workers", lambda: 0)
    loader.set_epoch(0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = list(loader.starting_at(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(states[2])
    assert len(rest) == len(alone) == 3
    for (a, x), (b, y), (c, z) in zip(whole[7:], rest, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(x, y)
        assert torch.equal(x, z)
    assert not torch.equal(torch.cat([images for images, _ in loader]), torch.cat([images for images, _ in whole]))


def test_names_of_what_was_a_boolean(noise: ImageData) -> None:
    for flag, name in ((True, "crop"), (False, "none")):
        for (a, _), (b, _) in zip(*(noise.loader("test", 100, augment=value) for value in (flag, name)), strict=True):
            assert torch.equal(a, b)


def test_erasing_leaves_the_rest_and_takes_as_many_images_as_asked() -> None:
    images = torch.zeros(2000, 1, 16, 16)
    erase_randomly(images, 0.3, 1)
    changed = (images != 0).float().mean((1, 2, 3))
    assert float((changed > 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert 0.01 < float(changed[changed > 0].min()) < float(changed.max()) < 0.4


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ("random-m9", "unknown; give none, crop or one of"),
        ("", "unknown"),
        ("crops", "nearest: crop"),
        ("rand-m9-foo", "unknown section 'foo'"),
        ("rand-mst0.5", "unknown section 'mst0.5'; rand knows .*nearest: mstd"),
        ("rand-m9.5", "section 'm9.5': must be m0 to m30, a whole number"),
        ("rand-m", "section 'm': must be m0"),
        ("rand-p2", "must be p0 to p1"),
        ("rand-n99-tweights", "must be n1 to n14"),
        ("rand-tall", "must be t and one of weights, 3a, 3aw"),
        ("augmix-n3", "unknown section 'n3'; augmix knows m, w, d, a, b, mstd"),
        ("original-m9", "unknown section 'm9'; original knows mstd"),
    ],
)
def test_bad_policy_is_refused_in_one_line(augment: str, words: str) -> None:
    with pytest.raises(UsageError, match=rf"^augment='{augment}': [^\n]*{words}[^\n]*$"):
        parse_augmentation(augment)


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_bad_probability_is_refused(noise: ImageData, probability: float) -> None:
    with pytest.raises(UsageError, match=r"^random_erasing=.*within 0\.\.1$"):
        noise.loader("train", 8, random_erasing=probability)


def test_nothing_is_nothing() -> None:
    assert parse_augmentation(False) == Augmentation()
    assert not parse_augmentation(True).draws_globally


def test_dataset_of_ones_own_takes_erasing_but_no_policy() -> None:
    dataset = TensorDataset(torch.zeros(8, 1, 16, 16), torch.arange(8) % 2)
    data = ImageData(name="mine", num_classes=2, input_shape=(1, 16, 16), train=dataset, holdout=dataset, test=dataset)
    with pytest.raises(UsageError, match="mine, train is a Dataset of your own"):
        data.loader("train", 4, augment="3a")
    state = random.getstate()
    first, again = ([images for images, _ in data.loader("train", 4, random_erasing=1.0)] for _ in range(2))
    assert random.getstate() == state
    assert all(bool((images != 0).any()) for images in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_random_windows_have_the_areas_and_proportions_they_should() -> None:
    sizes = np.asarray([(375, 500), (500, 333), (60, 60)] * 1000, np.uint32)
    windows = random_windows(sizes, np.random.default_rng(0))
    top, left, bottom, right = windows.T
    assert (windows >= 0).all()
    assert (windows <= 1 + 1e-12).all()
    height, width = (bottom - top) * sizes[:, 0], (right - left) * sizes[:, 1]
    area = (bottom - top) * (right - left)
    # Rounded to whole pixels: a little outside.
    assert 0.07 < area.min() < 0.1
    assert area.max() <= 1
    assert 0.72 < (width / height).min() < 0.78
    assert 1.28 < (width / height).max() < 1.4
    crop = RandomResizedCrop(1)
    expected = [crop.get_params(Image.new("L", (500, 375)), crop.scale, crop.ratio) for _ in range(1000)]
    shares = np.asarray([(tall * wide / 375 / 500, wide / tall) for _, _, tall, wide in expected])
    assert area[::3].mean() == pytest.approx(shares[:, 0].mean(), abs=0.03)
    assert (width / height)[::3].mean() == pytest.approx(shares[:, 1].mean(), abs=0.03)


def test_window_of_a_very_long_image_is_the_largest_that_is_allowed() -> None:
    window = random_windows(np.asarray([(10, 1000)], np.uint32), np.random.default_rng(0))[0]
    assert (window[0], window[2]) == (0, 1)
    assert (window[3] - window[1]) * 1000 == pytest.approx(40 / 3)


def test_crop_of_a_squashed_image_is_the_window_of_the_original() -> None:
    """Red grows to the right and green downwards, so that a crop's colours say which window it shows."""
    across, down = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 64))
    whole = np.stack((across, down, np.zeros_like(across)), axis=-1).round().astype(np.uint8)[None].repeat(30, axis=0)
    sizes = np.asarray([(100, 300)] * 30, np.uint32)
    windows = random_windows(sizes, np.random.default_rng(8))
    crops = resized_crops(whole, sizes, (32, 32), False, Image.Resampling.BILINEAR, np.random.default_rng(8))
    middle = crops[:, 15:17, 15:17].mean((1, 2)) / 255
    assert middle[:, 0] == pytest.approx((windows[:, 1] + windows[:, 3]) / 2, abs=0.03)
    assert middle[:, 1] == pytest.approx((windows[:, 0] + windows[:, 2]) / 2, abs=0.03)
    spread = (crops[:, 16, 31].astype(int) - crops[:, 16, 0])[:, 0] / 255
    assert spread == pytest.approx((windows[:, 3] - windows[:, 1]), abs=0.05)
