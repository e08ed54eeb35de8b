"""`python -m isbench.report.values [ID ...]`: the value of every claim at every seed, as CSV.

A verdict's number is the mean of these over seeds, of ratios the geometric mean, with Student's 95 % interval; where
`least` and `most` differ, or are not finite, it is the median with its interval from ranks. A shift of budget curves is
no number per seed; `isbench.report.budget_curve.final_errors` has what it is made from.
"""

import sys
from pathlib import Path

import pandas as pd

from isbench.errors import UserError
from isbench.files import RUNS
from isbench.nodes import nearest
from isbench.report.claims import QUANTITIES, measure
from isbench.report.inventory import experiments
from isbench.report.load import read_results
from isbench.terminal import outlive_terminal


def values(ids: list[str], results: Path = Path("results")) -> pd.DataFrame:
    """Return a row per experiment, claim and seed. Without `ids`, of all that are collected.

    Raises UserError where an experiment is not known or not collected.
    """
    known = {experiment.id: experiment for experiment in experiments()}
    rows = []
    for name in ids or [name for name in known if (results / name / RUNS).is_file()]:
        if name not in known:
            raise UserError(f"no experiment is called {name}; {nearest(name, known)}")
        runs = read_results(results / name)
        for claim in known[name].claims:
            scale = QUANTITIES[claim.quantity].scale
            for (dataset, model, seed), (least, most) in measure(claim, runs).values.items():
                where = {"experiment": name, "claim": claim.text, "arm": claim.arm}
                what = {"dataset": dataset, "model": model, "seed": seed}
                rows.append({**where, **what, "least": scale * least, "most": scale * most})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    outlive_terminal()
    try:
        print(values(sys.argv[1:]).to_csv(index=False, float_format="%.6g"), end="")
    except UserError as error:
        sys.exit(f"isbench: {error}")
