"""What `make test-faults` says it found: a test that fails is no fault survived, and is named."""

from types import SimpleNamespace

from tests.faults.__main__ import Account
from tests.faults.summary import headline, markdown


def report(name: str, outcome: str, properties: list, when: str = "call") -> SimpleNamespace:
    found = {state: state == outcome for state in ("passed", "failed", "skipped")}
    return SimpleNamespace(nodeid=name, when=when, user_properties=properties, **found)


def test_what_failed_is_not_survived_and_is_named() -> None:
    account, struck = Account(), ("struck", ("disk full", 3))
    for each in (
        report("passes", "passed", [struck, ("rows", (11, 0, 0))]),
        report("passes", "passed", [struck], when="teardown"),
        report("loses a row", "failed", [struck, ("rows", (11, 1, 0))]),
        report("fails before its fault", "failed", [("rows", (11, 0, 2))]),
        report("finds no program", "skipped", [], when="setup"),
    ):
        account.pytest_runtest_logreport(each)
    assert account.kinds["disk full"] == {"survived": 3, "rows": 22, "rows_lost": 1, "rows_doubled": 0}
    assert account.not_run == ["finds no program"]
    facts = {"seed": "1", "date": "2026-11-27", "python": "3.11", "torch": "2.15"}
    found = {"kinds": account.kinds, "failed": account.failed, **facts}
    assert headline(found).startswith("3 faults survived, 2 not; of 22 rows compared with undisturbed runs, 1 lost or")
    assert "| `loses a row` | **failed** |" in markdown(found) and "| disk full | 3 | 1 of 22 |" in markdown(found)
