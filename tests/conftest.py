"""Fixtures that every test may use."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A run that was started in the background ignores SIGINT, and so would every process that it starts; the tests of
# interruption need the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when torch is loaded; spinning threads slow down tests that run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements and decoded images out of the user's cache, and take none from it: those of another run may
    have been made while the machine was busy. The workers of one run share the folder.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFOLD_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _beside_other_tests() -> Iterator[None]:
    """Let no measurement wait for the other test workers to leave: they are there all the time.

    The sentinel has tests of its own, and commands that run as processes of their own have theirs.
    """
    from layerfold.profiler.timing.sentinel import SENTINEL

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SENTINEL, "is_slowed", lambda: False)
        yield


@pytest.fixture
def measured_in_a_hurry() -> Iterator[None]:
    """Let measurements settle at once, for tests of what a run hands on and not of how fast a network is.

    Beside other tests they would hardly settle by themselves, and use all the time that they may.
    """
    from layerfold.profiler.timing.measurement import MeasurePolicy

    def hurried(policy: MeasurePolicy) -> None:
        object.__setattr__(policy, "target", max(policy.target, 0.1))
        for name, most in (("cap_s", 0.05), ("warmup_cap_s", 0.02)):
            object.__setattr__(policy, name, min(getattr(policy, name), most))

    def checked_and_hurried(policy: MeasurePolicy) -> None:
        check(policy)
        hurried(policy)

    check = MeasurePolicy.__post_init__
    made_at_import = {
        id(value): value
        for name, module in list(sys.modules.items())
        if name.startswith("layerfold.")
        for value in list(vars(module).values())
        if isinstance(value, MeasurePolicy)
    }.values()
    kept = [(policy, dict(vars(policy))) for policy in made_at_import]
    for policy in made_at_import:
        hurried(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeasurePolicy, "__post_init__", checked_and_hurried)
        yield
    for policy, values in kept:
        for name, value in values.items():
            object.__setattr__(policy, name, value)


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back() -> Iterator[None]:
    """Give back what the tests of a file freed: glibc would otherwise keep gigabytes of tensors, in pieces."""
    yield
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(scope="session")
def shared_path() -> Path:
    """Return the folder of shared test data (``../shared`` or ``LAYERFOLD_SHARED``).

    Skips where it is absent; with ``LAYERFOLD_REQUIRE_SHARED=1`` (CI) its absence is a failure.
    """
    path = Path(os.environ.get("LAYERFOLD_SHARED", _ROOT.parent / "shared"))
    if not (path / "seed_tables").is_dir():
        reason = f"no shared test data at {path}; set LAYERFOLD_SHARED to its folder"
        if os.environ.get("LAYERFOLD_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
