"""Every public name is there."""

from __future__ import annotations

import pytest

import layerfold


@pytest.mark.parametrize("name", layerfold.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(layerfold, name) is not None
