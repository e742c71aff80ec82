"""Forms on disk: what is loaded computes what was saved; broken files are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from layerfold.errors import LayerfoldError, SolutionError, UsageError, WriteError
from layerfold.graph import trace_network
from layerfold.merge import Recipe, build_train_form, load_form, merge_network, save_form
from layerfold.models import load_model
from layerfold.solver import Solution

_SHAPE = (1, 32, 32)
_MODEL = "timm:mobilenetv2_035"


def _solution_of(net: object, merged: tuple[int, int]) -> Solution:
    start, end = merged
    stops = tuple(p for p in range(1, len(net.layers) + 1) if not start < p < end)  # type: ignore[attr-defined]
    acts = tuple(p for p in net.original_act_pos if p in stops)  # type: ignore[attr-defined]
    return Solution(act_pos=acts, merge_pos=stops, network_hash=net.hash)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, nn.Module, Recipe]:
    """Return a folder with train.safetensors and deploy.safetensors, both modules and the recipe."""
    folder = tmp_path_factory.mktemp("forms")
    model = load_model(_MODEL, num_classes=10, in_channels=1).module
    torch.manual_seed(3)
    for parameter in model.parameters():  # weights that building the model again does not give
        nn.init.normal_(parameter, std=0.1)
    net = trace_network(model, torch.zeros(1, *_SHAPE))
    recipe = Recipe(model=_MODEL, num_classes=10, in_channels=1, input_shape=_SHAPE, solution=_solution_of(net, (3, 6)))
    train = build_train_form(model, net, recipe.solution).eval()
    deploy = merge_network(train)
    save_form(
        train,
        folder / "train.safetensors",
        kind="train",
        recipe=recipe,
        facts={"accuracy_pct": 91.5, "place": Path("here")},
    )
    save_form(deploy, folder / "deploy.safetensors", kind="deploy", recipe=recipe)
    return folder, train, deploy, recipe


@pytest.mark.parametrize("kind", ["train", "deploy"])
def test_loaded_form_computes_what_was_saved(forms: tuple[Path, nn.Module, nn.Module, Recipe], kind: str) -> None:
    folder, train, deploy, recipe = forms
    found = load_form(folder / f"{kind}.safetensors")
    x = torch.randn(2, *_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.module(x), (train if kind == "train" else deploy)(x))
    assert (found.kind, found.recipe) == (kind, recipe)
    assert not found.module.training
    assert found.net.hash == recipe.solution.network_hash


def test_facts_come_back(forms: tuple[Path, nn.Module, nn.Module, Recipe]) -> None:
    assert load_form(forms[0] / "train.safetensors").facts == {"accuracy_pct": 91.5, "place": "here"}


def test_double_precision_is_kept(forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path) -> None:
    _, train, _, recipe = forms
    path = tmp_path / "double.safetensors"
    module = load_form(forms[0] / "train.safetensors").module.double()
    with torch.no_grad():
        next(module.parameters()).add_(1e-12)
    save_form(module, path, kind="train", recipe=recipe)
    found = load_form(path).module
    assert torch.equal(next(found.parameters()), next(module.parameters()))
    assert not torch.equal(next(found.parameters()), next(train.parameters()).double())


class _Tied(nn.Module):
    """Two convs that share one weight, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(x))).mean((2, 3))


def test_form_of_a_module_with_shared_weights_loads_into_that_module(tmp_path: Path) -> None:
    model = _Tied().eval()
    net = trace_network(model, torch.zeros(1, 4, 8, 8))
    recipe = Recipe(model="", input_shape=(4, 8, 8), solution=Solution(act_pos=[1], merge_pos=[1, 2]))
    train = build_train_form(model, net, recipe.solution)
    path = tmp_path / "tied.safetensors"
    save_form(train, path, kind="train", recipe=recipe)
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(load_form(path, model=_Tied().eval()).module(x), train(x))
    with pytest.raises(UsageError, match=r"tied\.safetensors: was made from a module without a source; pass"):
        load_form(path)


def test_recipe_survives_json(forms: tuple[Path, nn.Module, nn.Module, Recipe]) -> None:
    assert Recipe.from_json(json.loads(json.dumps(forms[3].to_json()))) == forms[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 3}, "recipe: model=3: expected a valid string"),
        ({"input_shape": [3, 0, 8]}, r"input_shape=\(3, 0, 8\): expected \(channels, height, width\)"),
        ({"input_shape": "3x8x8"}, "recipe: input_shape='3x8x8': expected a valid array"),
        ({"exclude": "stem"}, "recipe: exclude='stem': expected a valid array"),
        ({"num_classes": -1}, "recipe: num_classes=-1: expected greater than or equal to 1"),
        ({"solution": None}, "recipe: solution=None: expected a JSON object"),
        ({"solution": {"act_pos": [1]}}, "recipe: solution: merge_pos is missing"),
    ],
)
def test_broken_recipe_is_refused(
    forms: tuple[Path, nn.Module, nn.Module, Recipe], change: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.from_json({**forms[3].to_json(), **change})


def _copy(forms: tuple[Path, nn.Module, nn.Module, Recipe], to: Path) -> Path:
    for name in ("train.safetensors", "train.safetensors.json"):
        (to / name).write_bytes((forms[0] / name).read_bytes())
    return to / "train.safetensors"


def test_missing_files_are_named(forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.safetensors: no such file"):
        load_form(tmp_path / "none.safetensors")
    path = _copy(forms, tmp_path)
    Path(f"{path}.json").unlink()
    with pytest.raises(UsageError, match=r"no train\.safetensors\.json beside it"):
        load_form(path)
    path = _copy(forms, tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=r"no such file, though train\.safetensors\.json is there"):
        load_form(path)


def test_weights_of_another_run_are_refused(forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path) -> None:
    path = _copy(forms, tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match="the weights are not those"):
        load_form(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is no JSON"), ("[]", "expected a JSON object"), ('{"kind": "train", "recipe": {}}', "schema")],
)
def test_foreign_sidecar_is_refused(
    forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path, content: str, said: str
) -> None:
    path = _copy(forms, tmp_path)
    Path(f"{path}.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        load_form(path)


def _rewrite(path: Path, state: dict[str, torch.Tensor], **changes: object) -> None:
    import hashlib

    save_file(state, path)
    sidecar = Path(f"{path}.json")
    content = json.loads(sidecar.read_text()) | changes
    sidecar.write_text(json.dumps(content | {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))


def test_weights_that_do_not_fit_name_the_first(
    forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path
) -> None:
    path = _copy(forms, tmp_path)
    state = load_file(path)
    name = next(iter(state))
    _rewrite(path, {key: value for key, value in state.items() if key != name})
    with pytest.raises(UsageError, match=f"weight '{name}' is missing"):
        load_form(path)
    _rewrite(path, {**state, "more": torch.zeros(1)})
    with pytest.raises(UsageError, match="weight 'more' belongs nowhere"):
        load_form(path)
    _rewrite(path, {**state, "classifier.weight": torch.zeros(3, 4)})
    with pytest.raises(UsageError, match=r"'classifier.weight' has shape \(3, 4\)"):
        load_form(path)


def test_solution_of_another_network_is_refused(
    forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path
) -> None:
    path = _copy(forms, tmp_path)
    recipe = {**forms[3].to_json(), "model": "timm:mobilenetv2_050"}
    _rewrite(path, load_file(path), recipe=recipe)
    with pytest.raises(SolutionError, match=r"train\.safetensors: the solution was made for a network of hash"):
        load_form(path)


def test_save_refuses_another_suffix_and_leaves_no_parts(
    forms: tuple[Path, nn.Module, nn.Module, Recipe], tmp_path: Path
) -> None:
    with pytest.raises(LayerfoldError, match=r"ends in \.safetensors"):
        save_form(forms[1], tmp_path / "model.pth", kind="train", recipe=forms[3])
    save_form(forms[1], tmp_path / "deep" / "model.safetensors", kind="train", recipe=forms[3])
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["model.safetensors", "model.safetensors.json"]
    with pytest.raises(WriteError, match="cannot be written"):
        save_form(forms[1], "/dev/null/model.safetensors", kind="train", recipe=forms[3])
