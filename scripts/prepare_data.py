"""Read data sets once, through the functions that training uses, and print what was found.

    python scripts/prepare_data.py mnist cifar10 --data-dir data --download

Prints counts, classes, checksum and provenance, then the mean and standard deviation measured on the training inputs
beside those that normalise them.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from isbench.config import default_data_dir
from isbench.data import readers
from isbench.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "dataset"


def measure(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel (or feature) of uint8 inputs, in units of inputs / 255."""
    channels = inputs.movedim(1 if inputs.dim() == 4 else 2, 0)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).double()
    share, value = counts / counts.sum(1, keepdim=True), torch.arange(256) / 255
    mean = share @ value.double()
    return mean.tolist(), (share @ value.double() ** 2 - mean**2).sqrt().tolist()


def show(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(path.stem for path in CONF.glob("*.yaml")), metavar="name")
    parser.add_argument("--data-dir", type=Path, default=Path(default_data_dir()))
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    arguments = parser.parse_args()
    status = 0
    for name in arguments.names:
        options = dict(OmegaConf.load(CONF / f"{name}.yaml"))
        read = getattr(readers, options.pop("_target_").rpartition(".")[2])
        del options["name"]
        if "download" in options:
            options["download"] = arguments.download
        try:
            source = read(arguments.data_dir, **options)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        sizes = f"{len(source.train_targets)} train, {len(source.test_targets)} test, {source.num_classes} classes"
        print(f"{name}: {sizes}, checksum {source.checksum()}, {source.provenance}")
        statistics = zip(measure(source.train_inputs), (source.mean, source.std), strict=True)
        for label, (measured, used) in zip(("mean", "std "), statistics, strict=True):
            print(f"  {label} measured {show(measured)}; used {show(used)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
