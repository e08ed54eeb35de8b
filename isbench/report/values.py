"""`python -m isbench.report.values [ID ...]`: the value of every claim at every seed, as CSV.

A verdict's number is the mean of these over seeds, of ratios the geometric mean, with Student's 95 % interval; where
`least` and `most` differ, or are not finite, it is the median with its interval from ranks. A shift of budget curves is
no number per seed; `isbench.report.budget_curve.final_errors` has what it is made from.
"""

import sys
from pathlib import Path

import pandas as pd

from isbench.files import RUNS
from isbench.report.claims import QUANTITIES, measure
from isbench.report.inventory import experiments
from isbench.report.load import read_results
from isbench.terminal import outlive_terminal


def values(ids: list[str], results: Path = Path("results")) -> pd.DataFrame:
    """Return a row per experiment, claim and seed. Without `ids`, of all that are collected."""
    rows = []
    for experiment in experiments():
        if experiment.id in ids or (not ids and (results / experiment.id / RUNS).is_file()):
            runs = read_results(results / experiment.id)
            for claim in experiment.claims:
                scale = QUANTITIES[claim.quantity].scale
                for (dataset, model, seed), (least, most) in measure(claim, runs).values.items():
                    where = {"experiment": experiment.id, "claim": claim.text, "arm": claim.arm}
                    what = {"dataset": dataset, "model": model, "seed": seed}
                    rows.append({**where, **what, "least": scale * least, "most": scale * most})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    outlive_terminal()
    print(values(sys.argv[1:]).to_csv(index=False, float_format="%.6g"), end="")
