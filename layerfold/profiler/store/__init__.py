"""Measurements that outlive a run: the cache file, who claims what in it, and what a run did.

Imports from ``backends``, ``machine`` and ``timing``.
"""
