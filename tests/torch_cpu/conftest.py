"""Fixtures of the tests that need torch."""

from __future__ import annotations

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same weights and images whichever tests ran before, in this process or in another.

    Before the fixtures of the test, and so of those that the first test of a file makes for all.
    """
    torch.manual_seed(0)
