"""The levers: one file for each kind of change that a solver may choose (``layerfold.tables.levers``)."""
