"""Importances for benchmarks of latency, which need no data."""

from __future__ import annotations

import random

import layerfold as lf
from layerfold.graph import Network


def made_up_importance(net: Network, table: lf.LatencyTable, seed: int = 0) -> lf.ImportanceTable:
    """Return importances as if activations and layers were worth something by chance: what goes is what it costs.

    An activation is worth between 0.2 and 1.8 points, a layer that is dropped as much again.
    """
    rng = random.Random(seed)
    worth = {position: rng.uniform(0.2, 1.8) for position in range(1, len(net.layers) + 1)}
    layers = {position: rng.uniform(0.2, 1.8) for position in worth}
    entries = []
    for entry in table.entries:
        is_chain_start = any(chain.start == entry.start for chain in net.chains)
        removed = [m for m in range(entry.start + 1, entry.end) if net.has_activation(m)]
        dropped = entry.dropped or ()
        entries.append(
            lf.ImportanceEntry(
                start=entry.start,
                end=entry.end,
                start_act=1 if is_chain_start else int(net.has_activation(entry.start)),
                end_act=int(net.has_activation(entry.end)),
                # A merge without an activation inside still changes the borders a little.
                importance=-sum(worth[m] for m in removed)
                - sum(layers[m] for m in dropped)
                - 0.01 * (entry.end - entry.start - 1),
                merged=entry.merged if entry.drops else "",
                kept=entry.kept,
            )
        )
    return lf.ImportanceTable(entries)
