"""How many cores a process may use, and how its threads wait: made-up control groups of both generations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import assent
from assent import cpus, distributed
from assent.config import DataConfig, ModelConfig, SFTConfig, TrainConfig
from assent.train.runfolder import RunFolder

V2 = "30 23 0:26 {inside} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 {inside} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {inside} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def machine(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    """A file system's root with these control groups."""
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TOP, CPU = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
PERIOD = {f"{CPU}/{group}cpu.cfs_period_us": "100000\n" for group in ("", "a/", "a/b/")}
CASES = {
    "none": (V2, "/", "0::/\n", {}, None),
    "v2, no limit": (V2, "/", "0::/a/b\n", {f"{TOP}/a/b/cpu.max": "max 100000\n"}, None),
    "v2": (V2, "/", "0::/a/b\n", {f"{TOP}/a/b/cpu.max": "150000 100000\n"}, 1.5),
    "v2, the parent's": (
        V2, "/", "0::/a/b\n", {f"{TOP}/a/b/cpu.max": "max 100000\n", f"{TOP}/a/cpu.max": "200000 50000\n"}, 4.0,
    ),
    "v2, the smallest": (
        V2, "/", "0::/a/b\n", {f"{TOP}/a/b/cpu.max": "300000 100000\n", f"{TOP}/a/cpu.max": "200000 100000\n"}, 2.0,
    ),
    "v2, seen from within": (V2, "/", "0::/\n", {f"{TOP}/cpu.max": "50000 100000\n"}, 0.5),
    "v2, named from the host": (V2, "/pod/x", "0::/pod/x/job\n", {f"{TOP}/job/cpu.max": "50000 100000\n"}, 0.5),
    "v2, a group outside": (V2, "/pod/x", "0::/../y\n", {f"{TOP}/cpu.max": "70000 100000\n"}, 0.7),
    "v1, no limit": (V1, "/", "4:cpu,cpuacct:/a/b\n", {f"{CPU}/a/b/cpu.cfs_quota_us": "-1\n", **PERIOD}, None),
    "v1": (V1, "/", "4:cpu,cpuacct:/a/b\n", {f"{CPU}/a/b/cpu.cfs_quota_us": "250000\n", **PERIOD}, 2.5),
    "v1, the parent's": (V1, "/", "4:cpu,cpuacct:/a/b\n", {f"{CPU}/a/cpu.cfs_quota_us": "100000\n", **PERIOD}, 1.0),
    "v1, named from the host": (
        V1, "/docker/1", "4:cpu,cpuacct:/docker/1\n", {f"{CPU}/cpu.cfs_quota_us": "300000\n", **PERIOD}, 3.0,
    ),
    "v1, memory only": (V1, "/", "5:memory:/a\n", {f"{CPU}/a/cpu.cfs_quota_us": "100000\n", **PERIOD}, None),
    "both": (
        V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "), "/", "4:cpu,cpuacct:/a\n0::/a\n",
        {f"{CPU}/a/cpu.cfs_quota_us": "300000\n", f"{TOP}/unified/a/cpu.max": "200000 100000\n", **PERIOD}, 2.0,
    ),
    "nonsense": (V2, "/", "0::/a\n", {f"{TOP}/a/cpu.max": "much\n"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_quota_of_the_groups_around_a_process(name: str, tmp_path: Path):
    mounts, inside, groups, files, expected = CASES[name]
    assert cpus.quota(machine(tmp_path, mounts.format(inside=inside), groups, files)) == expected


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path):
    assert cpus.quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.5, 1), (2, 16.0, 2), (8, 3.0000001, 3)],
)
def test_a_quota_in_whole_cores(cores: int, quota: float | None, expected: int):
    assert cpus.within(cores, quota) == expected


@pytest.mark.parametrize(
    ("loadavg", "load"),
    [("2.05 1.98 1.50 3/345 99\n", 2), ("0.10 1 1 7/345 99\n", 6), ("1.9 1.9 1 1/345 99\n", 0), ("", 0)],
    ids=["two besides", "just begun", "what ran before is over", "unknown"],
)
def test_the_load_is_of_others_and_of_now(loadavg: str, load: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(loadavg)
    assert cpus.load(tmp_path) == load
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpus.load(tmp_path) == max(0, load - 1), "the other rank of this run is no neighbour"


def test_threads_sleep_where_cores_are_shared():
    assert cpus.waiting(0.0, 2) == cpus.waiting(0.9, 2) == cpus.WAIT["alone"]
    assert cpus.waiting(1.0, 2) == cpus.waiting(9.0, 2) == cpus.WAIT["shared"]
    assert cpus.waiting(1.0, 16) == cpus.WAIT["alone"]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpus, "load", lambda: 99.0)
    monkeypatch.delitem(sys.modules, "torch")
    for name in cpus.CHOSEN_BY_USER:
        environment = {name: "active", "PATH": "x"}
        cpus.configure(environment)
        assert environment == {name: "active", "PATH": "x"} and cpus.said(environment) == f"{name}=active"
    environment = {"OMP_NUM_THREADS": "3"}
    cpus.configure(environment)
    assert environment == {"OMP_NUM_THREADS": "3", **cpus.WAIT["shared"]} and cpus.shares(environment)
    assert not cpus.shares({"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "0"}) and not cpus.shares({})


def test_nothing_is_settled_once_torch_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpus, "load", lambda: 99.0)
    environment: dict[str, str] = {}
    cpus.configure(environment)
    assert environment == {} and cpus.said(environment) == "as OpenMP does by itself"


def test_it_is_settled_when_assent_is_imported():
    """So that the command, `python -m assent` and a library's user all get it, before torch is there."""
    code = (
        "import json, os, sys\n"
        "import assent, assent.cpus\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps({name: os.environ.get(name) for name in assent.cpus.WAIT['shared']}))\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in cpus.CHOSEN_BY_USER}
    env["PYTHONPATH"] = str(Path(assent.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    found = {name: value for name, value in json.loads(done.stdout).items() if value is not None}
    assert found in (cpus.WAIT["alone"], cpus.WAIT["shared"])
    env["OMP_WAIT_POLICY"] = "active"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"OMP_WAIT_POLICY": "active", "KMP_BLOCKTIME": None}


# ---- threads of a run


def test_threads_keep_to_the_quota(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(cpus, "usable", lambda: 3)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    distributed.init()
    distributed.init(5)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    distributed.init()
    assert asked == [3, 5], "the quota, --train.threads, and nothing where OMP_NUM_THREADS says it"


@pytest.mark.parametrize(("asked", "ranks", "threads"), [(0, 1, 4), (2, 1, 7), (0, 2, 7)])
def test_a_resumed_run_keeps_its_threads(asked: int, ranks: int, threads: int, tmp_path, monkeypatch, capsys):
    """Unless --train.threads or another number of ranks says otherwise: sums depend on it."""
    from assent.train import checkpoint

    config = SFTConfig(ModelConfig("m"), DataConfig("t"), str(tmp_path / "run"), train=TrainConfig(threads=asked))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    folder = RunFolder.create(config.out, config)
    folder.record({}, {})
    checkpoint.save(folder.checkpoints, 1, {"x": 1}, meta=folder.meta())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    again = RunFolder.create(config.out, config, "auto", ranks)
    again.record({}, {})
    again.close()
    assert (folder.threads, again.threads) == (4, threads)
    assert json.loads((folder.path / "environment.json").read_text())["threads"] == threads
    said = capsys.readouterr().err
    assert ("Resuming with 4 CPU threads, as the run began, not 7: --train.threads changes it." in said) == (
        asked == 0 and ranks == 1
    )
    assert ("threads: 4 -> 7" in said) == (threads == 7)
