"""The PPO paper's comparison of surrogate objectives (arXiv 1707.06347, Table 1) on MuJoCo tasks, with assent's losses.

    pip install -e '.[control]'
    python examples/control/table1.py --out runs/control
    python examples/control/table1.py --out runs/control --tasks Reacher-v5 --steps 500000

Every task is one file in the folder --out. A task that is there already is not run again, so a stopped table goes on
where it was, and two processes can share the work: give both the same --out and each some of the tasks.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from control.table import markdown, score
from control.training import SETTINGS, Hyperparameters, Training

from assent import messages
from assent.errors import AssentError, UserError
from assent.train.progress import ProgressDisplay

log = logging.getLogger("assent.control")

TASKS = ("HalfCheetah-v5", "Reacher-v5", "Swimmer-v5")
LEAST_STEPS = 10 * Hyperparameters.horizon
"""So that the last tenth, which is what counts, is a segment: two of the longest episodes."""
RANDOM_EPISODES = 100


def main() -> int:
    messages.show()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, made if it is not there")
    parser.add_argument(
        "--tasks", nargs="+", default=TASKS, metavar="TASK", help="gymnasium names; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=120_000, help="of each run, rounded up to whole segments of 2048")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting; the seeds are 0, 1, ...")
    args = parser.parse_args()
    if args.steps < LEAST_STEPS:
        parser.error(f"--steps: expected at least {LEAST_STEPS}, got {args.steps}; the last tenth of a run is scored")
    if args.seeds < 2:
        parser.error(f"--seeds: expected at least 2, got {args.seeds}; the table has the spread over seeds")
    torch.set_num_threads(1)  # the matrices are small; a second core is better used by a second process
    try:
        run(args.out, args.tasks, args.steps, args.seeds)
    except KeyboardInterrupt:
        log.info(f"Stopped. Finished tasks are in {args.out}; the same command goes on with the others.")
        return 130
    except AssentError as error:
        log.error(error)
        return error.exit_code
    return 0


def run(out: Path, tasks: Sequence[str], steps: int, seeds: int) -> None:
    """Runs what is not in `out` yet, then writes the table of all that is in it."""
    environments = {task: environment(task) for task in tasks}
    out.mkdir(parents=True, exist_ok=True)
    steps = math.ceil(steps / Hyperparameters.horizon) * Hyperparameters.horizon
    for number, task in enumerate(tasks, start=1):
        if not (out / f"{task}.json").exists():
            label = f"{task} ({number} of {len(tasks)})"
            save(out / f"{task}.json", result(task, environments[task], steps, range(seeds), label))
        page = markdown(load(out, steps, seeds))
        (out / "table.md").write_text(page, encoding="utf-8")
    print(page)


def result(task: str, make: Callable[[], Any], steps: int, seeds: Sequence[int], label: str) -> dict[str, Any]:
    """Scores of every setting and seed on one task, and of the policy that nothing has trained."""
    began = time.monotonic()
    training = Training(make, SETTINGS, seeds)
    with ProgressDisplay(steps, label) as progress:
        while training.experience.steps < steps:
            training.segment()
            progress.update(training.experience.steps)
    scores = [score(episodes, steps) for episodes in training.experience.episodes]
    groups = {setting.name: slice(at * len(seeds), (at + 1) * len(seeds)) for at, setting in enumerate(SETTINGS)}
    return {
        "task": task,
        "steps": steps,
        "seeds": len(seeds),
        "random": random_score(make),
        "scores": {name: scores[rows] for name, rows in groups.items()},
        "kl": {name: [float(np.mean(kl)) for kl in training.kl[rows]] for name, rows in groups.items()},
        "seconds": round(time.monotonic() - began),
        "versions": versions(),
    }


def random_score(make: Callable[[], Any]) -> float:
    """Mean total reward of `RANDOM_EPISODES` episodes with actions from N(0, 1), which is where every policy starts."""
    env, rng, total = make(), np.random.default_rng(0), 0.0
    for episode in range(RANDOM_EPISODES):
        env.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(rng.standard_normal(env.action_space.shape))
            total, over = total + float(reward), terminated or truncated
    return total / RANDOM_EPISODES


def environment(task: str) -> Callable[[], Any]:
    """What makes a new environment of a task. Raises UserError when there is no such task, or no gymnasium."""
    try:
        import gymnasium
        import mujoco
    except ImportError as error:
        raise UserError(f"This example needs gymnasium and mujoco ({error}): pip install -e '.[control]'") from error
    try:
        gymnasium.spec(task)
    except gymnasium.error.Error as error:
        raise UserError(f"--tasks: expected names of gymnasium's tasks such as {', '.join(TASKS)}; {error}") from error
    mujoco.set_mju_user_warning(
        cache(log.warning)
    )  # each once; else MuJoCo repeats itself into a file where the user stands
    return lambda: gymnasium.make(task, disable_env_checker=True)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("assent", "gymnasium", "mujoco", "torch")}


def save(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def load(out: Path, steps: int, seeds: int) -> list[dict[str, Any]]:
    """Every task in the folder. Raises UserError when one was run with other options."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    for found in results:
        if (found["steps"], found["seeds"]) != (steps, seeds):
            raise UserError(
                f"{out / found['task']}.json has {found['steps']:,} steps and {found['seeds']} seeds; got --steps"
                f" {steps} and --seeds {seeds}. Give the same, or another folder as --out."
            )
    return results


if __name__ == "__main__":
    sys.exit(main())
