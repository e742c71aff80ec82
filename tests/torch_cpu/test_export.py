"""ONNX export: equal to the module, quiet, and clear where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from layerfold.errors import ExportError, UsageError
from layerfold.export import check_onnx, export_network, export_onnx, to_half
from layerfold.graph import trace_network
from layerfold.merge import build_train_form, merge_network
from layerfold.profiler import get_backend
from layerfold.solver import Solution
from tests.quick_onnx import quick_onnx

INPUT = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_exported_graph_equals_the_module_and_the_module_stays_as_it_was(model, tmp_path, capfd):
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    onnx_bytes = export_onnx(model, INPUT, tmp_path / "sub" / "m.onnx")
    found = check_onnx(onnx_bytes, model, INPUT)
    assert found.max_rel < 1e-5
    assert (tmp_path / "sub" / "m.onnx").read_bytes() == onnx_bytes
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


class Doubled(nn.Module):
    """Has a forward of its own, in this file."""

    def forward(self, images):
        return 2 * torch.relu(images)


def test_file_tells_no_path_of_this_machine(model):
    found = export_onnx(nn.Sequential(model[0], Doubled(), model[1]), INPUT)
    for path in (__file__, Path(torch.__file__).parent, Path(onnx.__file__).parents[1], Path.cwd()):
        assert str(path).encode() not in found


def test_shapes_are_static_and_data_is_inside(model):
    graph = onnx.load_from_string(export_onnx(model, INPUT)).graph
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 16, 16]
    assert all(each.data_location == onnx.TensorProto.DEFAULT for each in graph.initializer)


def test_a_graph_of_other_weights_does_not_pass_the_check(model):
    onnx_bytes = quick_onnx(model, INPUT)
    with torch.no_grad():
        model[7].bias += 1.0
    with pytest.raises(ExportError, match="differs from the module"):
        check_onnx(onnx_bytes, model, INPUT)


def test_an_output_that_is_not_a_number_does_not_pass_the_check(model):
    with torch.no_grad():
        model[7].bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="differs from the module by nan"):
        check_onnx(quick_onnx(model, INPUT), model, INPUT)


class Unexportable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x)


def test_a_failing_export_names_the_node_and_prints_nothing(capfd):
    with pytest.raises(ExportError, match="Unexportable cannot be exported to ONNX: node linalg_eig: No ONNX function"):
        export_onnx(Unexportable(), torch.randn(1, 1, 4, 4))
    assert capfd.readouterr() == ("", "")


def test_half_precision_keeps_float32_at_the_ends(model):
    model.eval()
    runner = get_backend("onnxruntime").compile(to_half(quick_onnx(model, INPUT)))
    (found,) = runner.infer({runner.input_names[0]: INPUT.numpy()})
    assert found.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(found, model(INPUT).numpy(), atol=2e-2)


def test_export_network_writes_a_checked_file_from_a_merged_network(model, tmp_path):
    model.eval()
    net = trace_network(model, INPUT)
    merged = merge_network(build_train_form(model, net, Solution(act_pos=[2], merge_pos=[2])))
    report = export_network(merged, tmp_path / "out", example_input=INPUT)
    assert report.onnx_path == tmp_path / "out" / "model.onnx"
    assert report.check.max_rel <= 1e-4
    assert report.engine is None
    kinds = [node.op_type for node in onnx.load(str(report.onnx_path)).graph.node]
    assert kinds.count("Conv") == 1
    assert set(report.to_json()) == {"onnx_path", "check", "engine", "skipped"}


def test_a_file_that_fails_its_check_is_not_left_behind(model, tmp_path):
    with torch.no_grad():
        model[7].weight.fill_(float("inf"))
    with pytest.raises(ExportError):
        export_network(model, tmp_path, example_input=INPUT)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(model, tmp_path):
    with pytest.raises(UsageError, match=r"format 'onx' is not known.*nearest: onnx"):
        export_network(model, tmp_path, ("onx",), example_input=INPUT)
    with pytest.raises(UsageError, match="example_input=None"):
        export_network(model, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="is no folder"):
        export_network(model, tmp_path / "file", example_input=INPUT)
    with pytest.raises(UsageError, match="tolerance=0"):
        check_onnx(b"", model, INPUT, tolerance=0)
    with pytest.raises(ExportError, match="ONNX Runtime cannot run"):
        check_onnx(b"junk", model, INPUT)
