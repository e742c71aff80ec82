"""Build engines of a merged MobileNetV2 for GPUs that are not here, and record what was built and checked.

    python benchmarks/package/engines.py

One random plan of MobileNetV2 at 224 px is merged and exported to ONNX; from the file, engines are built in float32 and
float16 for three compute capabilities, each alone and all three in one engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import timm
import torch
from record import write_record

from layerfold.export import build_engine, check_onnx, export_onnx
from layerfold.graph import trace_network
from layerfold.merge import build_train_form, merge_network
from layerfold.solver import Solution
from tests.oracles.random_plans import random_solutions

CAPABILITIES = ("8.6", "8.9", "12.0")
PRECISIONS = ("float32", "float16")


def main() -> None:
    """Build, check, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv2_100", help="a timm model (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the plan (default: %(default)s)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = timm.create_model(args.model, pretrained=False).eval()
    example = torch.randn(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(args.seed))
    net = trace_network(model, example)
    # The third of five random plans: merged in the middle between hardly and strongly.
    act_pos, merge_pos = random_solutions(net, net.candidates(), 5, args.seed)[2]
    solution = Solution(act_pos=list(act_pos), merge_pos=list(merge_pos))
    merged = merge_network(build_train_form(model, net, solution).eval())
    onnx_bytes = export_onnx(merged, example)
    difference = check_onnx(onnx_bytes, merged, example).max_rel
    engines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            for capabilities in (*((each,) for each in CAPABILITIES), CAPABILITIES):
                began = time.perf_counter()
                report = build_engine(
                    onnx_bytes, Path(folder) / "m.engine", precision=precision, compute_capabilities=capabilities
                )
                engines.append(
                    {
                        "precision": precision,
                        "compute_capabilities": list(capabilities),
                        "engine_mib": round(report.engine_bytes / 2**20, 2),
                        "build_s": report.build_s,
                        "wall_s": round(time.perf_counter() - began, 2),
                        "inputs": report.inputs,
                        "outputs": report.outputs,
                        "check": asdict(report.check),
                        "library": report.library,
                    }
                )
                print(
                    f"{precision} {', '.join(capabilities)}: {engines[-1]['engine_mib']} MiB, {report.build_s} s, "
                    f"check: {report.check.method} {report.check.reason}"
                )
    write_record(
        "engines",
        {
            "layers": len(net.layers),
            "layers_after_merging": len(net.segments_of(merge_pos)),
            "onnx_mib": round(len(onnx_bytes) / 2**20, 2),
            "onnx_max_rel_difference": difference,
            "has_gpu": torch.cuda.is_available(),
            "engines": engines,
        },
        {**vars(args), "act_pos": list(act_pos), "merge_pos": list(merge_pos)},
        packages=("torch", "timm", "onnx", "onnxruntime", "tensorrt-rtx-cu13"),
    )


if __name__ == "__main__":
    main()
