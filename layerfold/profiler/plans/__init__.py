"""Whole networks under plans: which to time, timing them, and what they say of segments.

Imports from ``graphs``, ``store``, ``backends`` and ``timing``.
"""
