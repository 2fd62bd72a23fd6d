"""Cores for a process, by what Linux's documents of cgroups say these files hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamita import cores
from llamita.cores import num_threads, usable_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty stand-in for /sys/fs/cgroup, on a machine of eight cores."""
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("", 8),
        ("200000 0\n", 8),
    ],
)
def test_a_quota_of_version_2(groups: Path, text: str, expected: int) -> None:
    (groups / "cpu.max").write_text(text)
    assert usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_a_quota_of_version_1(groups: Path, quota: str, expected: int) -> None:
    (groups / "cpu").mkdir()
    (groups / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (groups / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == expected


def test_without_groups_or_affinity(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("asked", "expected"), [("1", 1), ("16", 16), ("0", 2), ("", 2), ("4,2", 4)]
)
def test_threads_as_pytorch_takes_them(
    groups: Path, monkeypatch: pytest.MonkeyPatch, asked: str, expected: int
) -> None:
    (groups / "cpu.max").write_text("200000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert num_threads() == expected
