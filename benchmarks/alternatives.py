"""A few epochs of LeNet, b=128, from start to end: isbench beside the loops that a user would otherwise write.

Each contestant starts from files and ends with the test error of the trained model. They take turns in one process and
use all cores. isbench does everything after composing its configuration: it reads the data, builds and warms up,
trains, evaluates before and after, and writes its record. The loops use torchvision's data set, with ToTensor and
Normalize, in a DataLoader. The data is MNIST and CIFAR-10 if $ISBENCH_DATA has them, else mnist5k. torchrl and composer
take part if they are installed. The start of the process is not timed here, but in the theme startup.
"""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler, default_collate
from torchvision import datasets, transforms

from benchmarks.data import Images
from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import compose_config
from isbench.build import _source, load_source
from isbench.data.readers import Source
from isbench.errors import DataError
from isbench.models.cnn import LeNet
from isbench.run import run

BATCH = 128
KEEP = 0.25  # share of a batch that selective backprop trains on
GOAL = 3.0


class Task:
    """A data set for both sides, and the parts of a hand-written loop."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.device = device
        self.config = compose_config(f"dataset={name}")
        source = self.source()
        self.shape, self.num_classes = source.train_inputs.shape[1:], source.num_classes
        self.normalize = transforms.Normalize(source.mean, source.std)
        self.epochs = 1 if len(source.train_targets) >= 50_000 else 5  # an epoch of mnist5k is only 31 updates

    def source(self) -> Source:
        return load_source(self.config.dataset, self.config.data_dir)

    def dataset(self, train: bool) -> Dataset:
        transform = transforms.Compose([transforms.ToTensor(), self.normalize])
        if self.name == "mnist":
            return datasets.MNIST(self.config.data_dir, train=train, transform=transform)
        if self.name == "cifar10":
            return datasets.CIFAR10(self.config.data_dir, train=train, transform=transform)
        source = self.source()
        if train:
            return Images(source.train_inputs, source.train_targets, transform)
        return Images(source.test_inputs, source.test_targets, transform)

    def model(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = LeNet(self.shape, self.num_classes).to(self.device)
        return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def test_error(self, model: nn.Module, workers: int) -> float:
        data = self.dataset(train=False)
        model.eval()
        wrong = 0
        with torch.no_grad():
            for inputs, targets in DataLoader(data, 1000, num_workers=workers):
                wrong += int((model(inputs.to(self.device)).argmax(1) != targets.to(self.device)).sum())
        return wrong / len(data)  # type: ignore[arg-type]


class Indexed(Dataset):
    """A data set that also returns the index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return *self.dataset[index], index


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def uniform(task: Task, workers: int) -> None:
    """The textbook loop."""
    model, optimizer = task.model()
    loader = DataLoader(task.dataset(train=True), BATCH, shuffle=True, num_workers=workers)
    for _ in range(task.epochs):
        for inputs, targets in loader:
            update(optimizer, F.cross_entropy(model(inputs.to(task.device)), targets.to(task.device)))
    task.test_error(model, workers)


def weighted(task: Task, workers: int) -> None:
    """The textbook importance sampler: losses of the whole set before the epoch, then WeightedRandomSampler."""
    model, optimizer = task.model()
    data = Indexed(task.dataset(train=True))
    for _ in range(task.epochs):
        losses = []
        with torch.no_grad():
            for inputs, targets, _ in DataLoader(data, 1000, num_workers=workers):
                logits = model(inputs.to(task.device))
                losses.append(F.cross_entropy(logits, targets.to(task.device), reduction="none"))
        probabilities = torch.cat(losses) / torch.cat(losses).sum()
        weights = 1 / (len(data) * probabilities)
        sampler = WeightedRandomSampler(probabilities.tolist(), len(data))
        for inputs, targets, indices in DataLoader(data, BATCH, sampler=sampler, num_workers=workers):
            loss = F.cross_entropy(model(inputs.to(task.device)), targets.to(task.device), reduction="none")
            update(optimizer, (weights[indices.to(task.device)] * loss).mean())
    task.test_error(model, workers)


def torchrl_prioritized(task: Task, workers: int) -> None:
    """torchrl's prioritized replay buffer of indices; the losses of each batch set their priorities."""
    from torchrl.data import LazyTensorStorage, ReplayBuffer
    from torchrl.data.replay_buffers.samplers import PrioritizedSampler

    model, optimizer = task.model()
    data = task.dataset(train=True)
    size = len(data)  # type: ignore[arg-type]
    sampler = PrioritizedSampler(size, alpha=0.6, beta=0.4)
    buffer = ReplayBuffer(storage=LazyTensorStorage(size), sampler=sampler, batch_size=BATCH)
    buffer.extend(torch.arange(size))
    for _ in range(task.epochs * size // BATCH):
        indices, info = buffer.sample(return_info=True)
        inputs, targets = default_collate([data[index] for index in indices.tolist()])
        losses = F.cross_entropy(model(inputs.to(task.device)), targets.to(task.device), reduction="none")
        weights = torch.as_tensor(info["priority_weight"], device=task.device)
        update(optimizer, (weights * losses).mean())
        buffer.update_priority(indices, losses.detach().cpu())
    task.test_error(model, workers)


def composer_selective_backprop(task: Task, workers: int) -> None:
    """The textbook loop with composer's function that selects a share of each batch."""
    from composer.functional import select_using_loss

    model, optimizer = task.model()
    loader = DataLoader(task.dataset(train=True), BATCH, shuffle=True, num_workers=workers)
    for _ in range(task.epochs):
        for inputs, targets in loader:
            given = inputs.to(task.device), targets.to(task.device)
            inputs, targets = select_using_loss(*given, model, F.cross_entropy, keep=KEEP)
            update(optimizer, F.cross_entropy(model(inputs), targets))
    task.test_error(model, workers)


def isbench(task: Task, sampler: str, share: float = 1, choices: tuple[str, ...] = ()) -> None:
    """One run, from its configuration to its record; each epoch trains on `share` of the examples."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        budget = ("budget.unit=epochs", f"budget.limit={share * task.epochs}", "evaluation.points=1")
        given = (f"dataset={task.name}", "model=lenet", f"sampler={sampler}", f"runs_dir={folder}")
        run(compose_config(*given, *budget, f"numerics.threads={torch.get_num_threads()}", *choices))


def tasks(device: torch.device) -> list[Task]:
    """Return the tasks whose data can be read."""
    found = []
    for name in ("mnist", "cifar10"):
        with contextlib.suppress(DataError):
            found.append(Task(name, device))
    return found or [Task("mnist5k", device)]


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    chosen = [Task("mnist5k", device)] if quick else tasks(device)
    for task in chosen:
        yield from compare(task, rounds=2 if quick else 3)


def compare(task: Task, rounds: int) -> Iterator[Row]:
    def end_to_end(function: Callable[..., None], *arguments) -> Work:
        def steps(count: int) -> None:
            for _ in range(count):
                _source.cache_clear()  # so that the data set is read again
                function(task, *arguments)

        return steps

    selective = ("sampler.priming_passes=0",)  # a pass over the candidates trains on a quarter of them
    contestants = {
        "uniform": end_to_end(isbench, "uniform"),
        "prioritized": end_to_end(isbench, "prioritized"),
        "selective_backprop": end_to_end(isbench, "selective_backprop", KEEP, selective),
        "DataLoader": end_to_end(uniform, 0),
        "DataLoader, 2 workers": end_to_end(uniform, 2),
        "WeightedRandomSampler, 2 workers": end_to_end(weighted, 2),
    }
    pairs = [
        ("uniform", "DataLoader"),
        ("uniform", "DataLoader, 2 workers"),
        ("prioritized", "WeightedRandomSampler, 2 workers"),
    ]
    for package, sampler, function in (
        ("torchrl", "prioritized", torchrl_prioritized),
        ("composer", "selective_backprop", composer_selective_backprop),
    ):
        if importlib.util.find_spec(package):
            contestants[package] = end_to_end(function, 0)
            pairs.append((sampler, package))
    times = dict(zip(contestants, race(list(contestants.values()), rounds, steps=1, wall=True), strict=True))
    for sampler, other in pairs:
        yield Row(f"{task.name}: {sampler}", f"{other}: speed", ratios(times[other], times[sampler]), at_least=GOAL)
    for name, seconds in times.items():
        yield Row(f"{task.name}: {name}", "", seconds, "s", note=f"for information; epochs: {task.epochs}")
