"""Reports from W&B: the same files, to the last byte, as from the local records."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import wandb

from isbench.errors import UserError
from isbench.files import RECORD_COPY
from isbench.recording.record import read_rows
from isbench.recording.wandb_sink import make_sink
from isbench.report.__main__ import main, report
from isbench.report.load import load_runs
from isbench.report.wandb_runs import load_wandb
from tests.report_samples import write_run
from tests.wandb_server import ENTITY, ServedRun, WandbServer

pytestmark = pytest.mark.usefixtures("no_account")
GROUP = f"{ENTITY}/project/mine"


@pytest.fixture(autouse=True)
def forgotten():
    """W&B keeps the settings that it began with for the life of a process."""
    yield
    wandb.teardown()


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Write runs whose values are hard to carry: not finite, nested, with all digits, of several attempts."""
    folder = tmp_path / "mine"
    for seed in (0, 1):
        write_run(folder, "uniform", seed, [(0, 0.9), (10 / 3, 0.1 + seed / 7), (20 / 3, math.pi / 100)])
        probes = {20: [{"index": 3, "scores": [0.1, 1e-300, 2 / 3], "pairs": [[1, 2.5], []], "of": None}]}
        curve, losses = [(0, 0.9), (2, 0.2 + 1e-16), (6, 0.03)], [math.nan, 1e30, 1 / 3]
        write_run(folder, "loss", seed, curve, options={"tau": 1 / 3}, losses=losses, probes=probes)
    write_run(folder, "rais", 0, [(0, 0.9)], status="skipped", reason='does not suit "it"')
    return folder


def send(record: Path) -> None:
    """Send a run to W&B as training does."""
    rows = read_rows(record)
    settings = {
        "project": "project",
        "run_group": "mine",
        "run_id": rows[0]["run_id"],
        "root_dir": str(record.parents[2]),
    }
    sink = make_sink("online", 60, record, rows[0]["config"], settings)
    for row in rows:
        if row["kind"] == "evaluation":
            sink.log(row)
    sink.finish(rows[-1]["status"], rows[-1]["reason"])


def test_a_report_from_wandb_is_that_from_the_records(
    records: Path, wandb_server: WandbServer, tmp_path: Path, monkeypatch, capsys
) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(send, sorted(records.rglob("record.jsonl"))))
    assert len(wandb_server.runs) == 5
    wandb_server.runs["going"] = ServedRun("project", {"groupName": "mine"})
    monkeypatch.chdir(tmp_path)
    report(str(records), tmp_path / "local")
    assert main([f"wandb:{GROUP}", "--title", "Importance sampling: mine"]) == 0
    assert capsys.readouterr().out.endswith(f"report: reports/{GROUP}/report.html\n")
    report(f"wandb:{records}", tmp_path / "disk")
    names = {path.name for path in (tmp_path / "local").iterdir()}
    assert names == {"report.html", "table.md", "table.csv", "rows.csv", "curves.png", "curves.svg"}
    for name in names:
        expected = (tmp_path / "local" / name).read_bytes()
        assert (tmp_path / "disk" / name).read_bytes() == expected, name
        if name != "report.html":  # it says that one run has not ended
            assert (tmp_path / "reports" / GROUP / name).read_bytes() == expected, name
    assert "going has not ended" in (tmp_path / "reports" / GROUP / "report.html").read_text()
    local, remote = load_runs(records), load_wandb(GROUP)
    for table in ("rows", "runs", "probes"):
        pd.testing.assert_frame_equal(getattr(local, table), getattr(remote, table), check_exact=True)


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    record = write_run(tmp_path / "runs", "uniform", 0, [(0, 0.9), (1, 0.5)])
    text = record.read_text()
    later = text.replace('"attempt": 1', '"attempt": 2').replace("T03:30:00", "T04:30:00").replace("0.5", "0.25")
    for name, content in (("run-b", text), ("run-a", text + later)):
        (tmp_path / name / "files").mkdir(parents=True)
        (tmp_path / name / "files" / RECORD_COPY).write_text(content)
    runs = load_wandb(str(tmp_path))
    assert runs.runs["attempts"].tolist() == [2] and runs.rows["test_error"].tolist() == [0.9, 0.25]


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("nowhere", "wandb:nowhere: neither a folder here nor ENTITY/PROJECT/GROUP"),
        (f"{ENTITY}/project", "neither a folder here nor"),
        (f"{ENTITY}/none/mine", "Could not find project none"),
        ("nobody/project/mine", "Could not find project project"),
        (f"{ENTITY}/project/other", "has no runs of the group other"),
    ],
)
def test_what_is_not_there_is_one_line(place: str, complaint: str, wandb_server: WandbServer, capsys) -> None:
    wandb_server.runs["one"] = ServedRun("project", {"groupName": "mine"})
    assert main([f"wandb:{place}"]) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_no_account_and_no_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no isbench.jsonl below it"):
        load_wandb(str(tmp_path))
    with pytest.raises(UserError, match=r"^[^\n]*API key[^\n]*$"):
        load_wandb(GROUP)
