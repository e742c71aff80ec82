"""DepthShrinker's six published patterns of MobileNetV2-1.4, each measured on this device in turns with the original.

    python benchmarks/latency/published_patterns.py
    python benchmarks/latency/published_patterns.py --latency build/latency/mobilenetv2_140.csv   # and merged for speed

Latency does not depend on the weights, so they are random.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from record import ROOT, write_record

import layerfold as lf
from layerfold.profiler import get_backend
from layerfold.search import PUBLISHED_PATTERNS

_MODEL, _SHAPE = "timm:mobilenetv2_140", (3, 224, 224)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--latency",
        type=Path,
        metavar="CSV",
        help="the network's latency table: measure each pattern's fastest merging too",
    )
    parser.add_argument("--backend", default="onnxruntime", metavar="NAME")
    parser.add_argument("--device", metavar="NAME", help="of the backend")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--cap-s", type=float, default=10.0, metavar="S", help="most seconds per network")
    parser.add_argument("--plot", type=Path, default=ROOT / "build/published_patterns.png", metavar="PNG")
    arguments = parser.parse_args()
    model = lf.load_model(_MODEL).module
    net = lf.trace_network(model, torch.zeros(1, *_SHAPE))
    table = None if arguments.latency is None else lf.LatencyTable.read(arguments.latency)
    solutions = {name.rpartition("-")[2]: lf.published_pattern(name, net) for name in PUBLISHED_PATTERNS}
    if table is not None:
        fastest = {
            f"{name.rpartition('-')[2]}, fastest merging": lf.published_pattern(name, net, table)
            for name in PUBLISHED_PATTERNS
        }
        solutions = {name: each for pair in zip(solutions.items(), fastest.items(), strict=True) for name, each in pair}
    backend = get_backend(arguments.backend, device=arguments.device, threads=1)
    found = lf.compare_solutions(
        model, net, solutions, backend, latency=table, batch=arguments.batch, cap_s=arguments.cap_s
    )
    for each in found.networks:
        print(
            f"{each.name:<20}{each.measured_ms:>9.3f} ms {each.speedup:>7.3f}x  {each.num_convs:>3} convs"
            f"{each.num_activations:>5} activations{each.macs / 1e6:>8.0f} M multiply-adds"
        )
    found.plot(arguments.plot, title=f"DepthShrinker's patterns on {found.provenance['device']}")
    settings = {"model": _MODEL, "input": _SHAPE, "batch": arguments.batch, "threads": 1, "cap_s": arguments.cap_s}
    write_record("published_patterns", found.to_json(), settings, packages=("torch", "timm", "onnx", "onnxruntime"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
