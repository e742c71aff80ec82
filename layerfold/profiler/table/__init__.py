"""How a latency table comes about: segments alone, between neighbours, fitted to networks; by one process or many.

Imports from every other room.
"""
