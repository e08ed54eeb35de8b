"""The same bits again on a GPU: of a run that was killed, its updates replayed as CUDA graphs."""

from pathlib import Path

import pytest

from isbench.recording.record import read_rows
from tests.conftest import final_rows, wait_for_rows
from tests.gpu.conftest import needs_a_real_one, on_a_gpu
from tests.test_run import finish, start

pytestmark = [*on_a_gpu, needs_a_real_one]

# Under a gate that opens on the way.
LENET = ("device=cuda", "model=lenet", "budget.limit=4000", "evaluation.points=40")


@pytest.mark.parametrize(("engine", "precision"), [("graphed", "tf32"), ("compiled_graphed", "bfloat16")])
def test_kill_minus_nine_then_the_same_command(engine: str, precision: str, tmp_path: Path) -> None:
    words = (*LENET, f"numerics.engine={engine}", f"numerics.precision={precision}")
    undisturbed = finish(tmp_path / "undisturbed", *words)
    for rows in (3, 12, 21):
        command = start(tmp_path / "killed", *words, afresh=True)
        wait_for_rows(tmp_path / "killed", rows)
        command.kill()
    record = finish(tmp_path / "killed", *words)
    assert final_rows(record) == final_rows(undisturbed)
    assert sum(row["kind"] == "start" for row in read_rows(record)) == 4, "each was killed on its way"
