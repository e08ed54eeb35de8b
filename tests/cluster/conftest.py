"""A real SLURM on this machine: installed if it is not there, started for the session, stopped at its end."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge")


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory) -> Iterator[None]:
    """Start SLURM, or skip with the reason why not."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root")
    if not shutil.which("slurmctld"):
        if not shutil.which("apt-get"):
            pytest.skip("slurm-wlm and munge are not installed, and there is no apt-get")
        say_why_not(("apt-get", "update"))
        say_why_not(INSTALL)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        say_why_not((HERE / "start.sh", folder))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
            yield
    finally:
        subprocess.run((HERE / "stop.sh", folder), check=True)


def say_why_not(command: tuple) -> None:
    """Run a command; skip the tests with its last words if it fails."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        words = (result.stderr or result.stdout).strip().splitlines()
        pytest.skip(f"{Path(command[0]).name}: {words[-1] if words else result.returncode}")
