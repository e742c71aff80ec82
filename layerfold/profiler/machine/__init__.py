"""How the machine was while something was measured: clocks, heat, neighbours. Imports from ``timing`` only."""
