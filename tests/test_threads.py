"""Idle OpenMP threads sleep where the machine is at work with something else, and what the user has set stays."""

from __future__ import annotations

import os

import pytest

from vae_lightning.__main__ import _share_cores


@pytest.mark.parametrize(
    ("load", "given", "expected"), [(0.1, None, None), (2.0, None, "PASSIVE"), (2.0, "ACTIVE", "ACTIVE")]
)
def test_the_wait_policy_follows_the_load(
    monkeypatch: pytest.MonkeyPatch, load: float, given: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    _share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
