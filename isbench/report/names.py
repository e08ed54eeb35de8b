"""Methods, data sets and networks as people write them: `Upper bound, break even` for `upper_bound_break_even`."""

WRITTEN = {
    # methods, and what arms are made of
    "c_sgd": "c-SGD",
    "gradient_norm": "Gradient norm",
    "impon": "IMPON",
    "infobatch": "InfoBatch",
    "loss_predictor": "Loss predictor",
    "online_batch_selection": "Online batch selection",
    "order_dp": "OrderDP",
    "p_sgd": "p-SGD",
    "rais": "RAIS",
    "rho_loss": "RHO-LOSS",
    "screen": "Screening",
    "selective_backprop": "Selective backprop",
    "sgd_s": "SGD-S",
    "uniform": "Uniform",
    "upper_bound": "Upper bound",
    # signals
    "logit_gradient_norm": "Upper bound",
    "per_example_gradient_norm": "Gradient norm",
    # data sets
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "mit67": "MIT67",
    "mnist": "MNIST",
    "mnist5k": "MNIST (5,000 digits)",
    "pixel_mnist": "Pixel MNIST",
    "rot_mnist": "rot-MNIST",
    "svhn": "SVHN",
    # networks
    "cnn7": "seven-layer CNN",
    "convnet": "ConvNet",
    "lenet": "LeNet",
    "lstm": "LSTM",
    "mlp": "MLP",
    "preact_resnet18": "pre-activation ResNet-18",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "wrn_10_1": "WRN-10-1",
    "wrn_28_2": "WRN-28-2",
}
OWN = "screen"  # isbench's own method, and the folder of its experiments


def written(name: str) -> str:
    """Return a name as people write it; what follows a known name is set off by a comma, options by brackets."""
    head, _, options = name.partition(" ")
    known = max((key for key in WRITTEN if head == key or head.startswith(f"{key}_")), key=len, default="")
    words = head.removeprefix(known).strip("_").split("_")
    rest = " ".join(WRITTEN[word] if WRITTEN.get(word, "").isupper() else word for word in words)
    text = ", ".join(part for part in (WRITTEN.get(known, ""), rest) if part) if known else rest[:1].upper() + rest[1:]
    if not options or options.startswith("at "):  # what was swept
        return f"{text} {options}".rstrip()
    return f"{text} ({options})"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def task(dataset: str, model: str) -> str:
    """Return what is learned by what: `MNIST, LeNet`."""
    return f"{written(dataset)}, {written(model)}"
