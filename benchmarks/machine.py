"""Prints, as one JSON line, what this machine is and its rate of matrix products: `python -m benchmarks.machine`."""

from __future__ import annotations

import json

from assent.environment import matmul_rates, snapshot


def main() -> None:
    rates = {precision: rate for (_, precision), rate in matmul_rates(seconds=2.0).items()}
    print(json.dumps({**snapshot(), "matmul": rates}))


if __name__ == "__main__":
    main()
