"""Idle OpenMP threads sleep where the machine is at work with something else, and what the user has set stays."""

from __future__ import annotations

import os

import pytest

from vae_lightning import __main__ as program


@pytest.mark.parametrize(
    ("busy", "ranks", "given", "expected"),
    [
        (5, None, None, None),
        (15, None, None, "PASSIVE"),
        (15, None, "ACTIVE", "ACTIVE"),
        (0, "2", None, "PASSIVE"),
    ],
)
def test_the_wait_policy_follows_what_others_do_now(
    monkeypatch: pytest.MonkeyPatch, busy: int, ranks: str | None, given: str | None, expected: str | None
) -> None:
    ticks = iter([(1000, 1000), (1000 + busy, 1000 + 20 - busy)])
    monkeypatch.setattr(program, "_jiffies", lambda: next(ticks))
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))  # of what ended a moment ago: not asked
    for name, value in (("OMP_WAIT_POLICY", given), ("LOCAL_WORLD_SIZE", ranks)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    program._share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_a_system_without_ticks_is_asked_for_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[int, int]:
        raise FileNotFoundError

    monkeypatch.setattr(program, "_jiffies", missing)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert program._share_in_use() == 1.5
