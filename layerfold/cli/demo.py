"""``layerfold demo``: the main job on an embedded default."""

from __future__ import annotations

import argparse
from typing import Any

from layerfold.cli._options import SEED, add_result_arguments, check_output_folder, whole
from layerfold.cli.compress import print_result


def add_parser(subparsers: Any) -> None:
    """Add ``demo`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train a small network on real images and compress it for this CPU",
        description="Train a small MobileNetV3 on digits in noise (data noisy15k, 40x40), then compress it "
        "to 1.4 times its speed in ONNX Runtime on this CPU. Run again, it goes on where it stopped.",
    )
    parser.add_argument("-o", "--output", default="demo-out", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="less training; for trying it out and for CI")
    parser.add_argument("--overwrite", action="store_true", help="start over where the folder holds another run")
    parser.add_argument("--seed", type=whole(0, SEED), default=0, metavar="N", help="of everything random (default: 0)")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print the result table; 3 if the last measurement is over the budget."""
    check_output_folder(arguments.output)
    from layerfold.pipeline.demo import QUICK, run_demo

    result = run_demo(
        arguments.output,
        settings=QUICK if arguments.quick else None,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
    )
    return print_result(result, arguments)
