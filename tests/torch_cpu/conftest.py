"""Fixtures of the tests that need torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same weights and images whichever tests ran before, in this process or in another.

    Before the fixtures of the test, and so of those that the first test of a file makes for all.
    """
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _image_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images of tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerfold.data._image_cache.default_cache_folder", lambda: folder)
        yield
