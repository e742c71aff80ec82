"""What `network.json` holds."""

from __future__ import annotations

from dataclasses import asdict

from layerfold.files import JsonObject
from layerfold.graph import Network


def describe_network(net: Network) -> JsonObject:
    """Return a network's description as plain JSON."""
    return {
        "name": net.name,
        "hash": net.hash,
        "input_shapes": net.input_shapes,
        "macs": net.macs,
        "num_params": net.num_params,
        "layers": [layer.to_json() for layer in net.layers],
        "chains": [asdict(chain) for chain in net.chains],
        "residuals": [asdict(residual) for residual in net.residuals],
        "barriers": [asdict(barrier) for barrier in net.barriers],
    }
