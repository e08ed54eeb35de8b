"""The tables and the picture of docs/scale.md, as functions of results/benchmarks/scale.json."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.scale.constants import BATCHES, FIT_EXAMPLES, LARGE, SMALL
from benchmarks.scale.formulas import (
    EXCHANGES,
    GATHER,
    REDUCE,
    RHOS,
    TRIALS,
    best_pool,
    epochs_to_beat,
    gather_seconds,
    history_speed,
    power_law,
    variance_gain,
)
from benchmarks.summary import number
from isbench.report.curves import INK, STYLES

Content = dict[str, Any]
MODEL = "resnet18"  # the planned network gets this one's share of a forward pass in a step
TAU2 = 1.5, 2.0, 3.0, 5.0, 10.0, 20.0
SHOWN_TAU2 = 10.0
SMALL_SHARE = 0.05  # of a step
MEANS = "tau2", "rho", "at_rho", "at_one", "best", "best_exponent", "effective_rho"


def assumed(value: float, what: str) -> Any:
    return field(default=value, metadata={"what": what})


@dataclass(frozen=True)
class Plan:
    """The planned run. Nothing in it is measured."""

    examples: float = assumed(1e9, "N, training examples")
    ranks: float = assumed(64, "K, processes with a GPU each")
    batch: float = assumed(8192, "b, examples of an update, all ranks together")
    pool: float = assumed(40_960, "B, examples that presampling scores for it, all ranks together")
    step_seconds: float = assumed(0.1, "seconds of an update with a uniform batch")
    latency: float = assumed(1e-5, "seconds that the shortest message takes from rank to rank")
    bandwidth: float = assumed(1e10, "bytes per second that a rank can send")
    parameters: float = assumed(25.6e6, "parameters of the network, in float32")
    norm_layers: float = assumed(53, "layers of batch norm")
    norm_channels: float = assumed(500, "channels of such a layer, on average")
    example_bytes: float = assumed(3 * 224 * 224, "bytes of an input as it is stored")
    memory: float = assumed(8e10, "bytes that a rank has for the state of a sampler")


def tables(content: Content) -> dict[str, str]:
    """Return the tables of the page by name."""
    plan = Plan(**content["plan"])
    return {
        "assumptions": assumptions(plan),
        "constants": constants(content),
        "memory": memory(plan, content),
        "exchanges": exchanges(plan, content),
        "bookkeeping": bookkeeping(plan, content),
        "methods": methods(plan, content),
        "simulation": simulation(content),
        "visits": visits(plan, content),
    }


def renewed(page: str, content: Content) -> str:
    """Return the page with new tables. Comments in the page name the place of each."""
    for name, text in tables(content).items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        page = re.sub(f"{start}.*{end}", f"{start}\n{text}\n{end}", page, flags=re.DOTALL)
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def quantity(value: float, unit: str) -> str:
    """Return a value with three digits and a prefix: 16.5 GB."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= scale:
            return f"{number(value / scale)} {prefix}{unit}"
    return f"{number(value * 1e9)} n{unit}" if value else f"0 {unit}"


def assumptions(plan: Plan) -> str:
    rows = [(f"`--{f.name.replace('_', '-')}`", f"{getattr(plan, f.name):g}", f.metadata["what"]) for f in fields(plan)]
    return table(("option", "assumed", "what"), rows)


def constants(content: Content) -> str:
    measured, rows = content["measured"], []
    for kind in EXCHANGES:
        latency, bandwidth = fitted_network(measured["exchanges"], kind)
        rows.append(
            (f"{kind} of two processes over loopback", f"{quantity(latency, 's')}, {quantity(bandwidth, 'B/s')}")
        )
    shares = ", ".join(f"{share:.2f} ({model})" for model, share in content["taken"]["forward_share"].items())
    rows.append(("f, share of a forward pass in an example's training step", shares))
    rows.append(("a sweep of `rais` over all examples", f"{quantity(sweep_seconds(content), 's')} per example"))
    machine = measured["machine"]
    where = f"{machine['cpu']}, {machine['logical_cores']} cores, torch {machine['torch']}, {measured['date']}"
    load = f"load average {measured['load_average'][0]:g}"
    return table(("constant", "measured"), rows) + f"\n\n{where}, {load}."


def memory(plan: Plan, content: Content) -> str:
    sizes = {f"`{name}`": size for name, size in content["taken"]["bytes_per_example"].items()}
    rows = [
        (
            name,
            number(size),
            quantity(size * plan.examples, "B"),
            quantity(size * plan.examples / plan.ranks, "B"),
            f"{number(plan.memory / size / 1e6)} million" if size else "any",
        )
        for name, size in {**sizes, "the inputs themselves": plan.example_bytes}.items()
    ]
    head = ("what", "bytes per example", "on every rank", "if sharded", f"largest N in {quantity(plan.memory, 'B')}")
    return table(head, rows)


def exchanges(plan: Plan, content: Content) -> str:
    rows, messages = [], 3 * plan.norm_layers
    for what, payer, kind, size, count in (
        ("gradients", "all, mostly behind the backward pass", REDUCE, 4 * plan.parameters, 1),
        # A layer's mean, its variance, and two sums together in the backward pass.
        ("batch statistics", "batch norm with `sync_norm=true`", REDUCE, 16 / 3 * plan.norm_channels, messages),
        ("clock", "all, nobody waits", REDUCE, 8, 1),
        ("scores of the batch", "histories", GATHER, 4 * plan.batch, 1),
        ("scores of the pool", "presampling", GATHER, 4 * plan.pool, 1),
        ("totals of the shards", "histories, if sharded", GATHER, 8 * plan.ranks, 1),
    ):
        planned = count * EXCHANGES[kind](size, plan.ranks, plan.latency, plan.bandwidth)
        here = count * EXCHANGES[kind](size, 2, *fitted_network(content["measured"]["exchanges"], kind))
        times = f"{count:g} x " if count > 1 else ""
        rows.append((what, payer, kind, times + quantity(size, "B"), quantity(planned, "s"), quantity(here, "s")))
    head = ("what", "who pays", "exchange", "bytes", f"{plan.ranks:g} ranks, assumed", "2 ranks, measured")
    speeds = [n / plan.ranks * plan.example_bytes / plan.step_seconds for n in (plan.batch, plan.batch + plan.pool)]
    reads = " a second with uniform batches, and for as many updates with presampling ".join(
        quantity(speed, "B") for speed in speeds
    )
    return f"{table(head, rows)}\n\nOf inputs each rank reads {reads}."


def bookkeeping(plan: Plan, content: Content) -> str:
    rows = []
    for what, name in (("prioritized", "`prioritized`"), ("rais", "`rais`")):
        measured = [row for row in content["measured"]["bookkeeping"] if row["what"] == what]
        cells = [quantity(row["seconds"], "s") for row in measured if row["examples"] == SMALL]
        replicated, sharded = (bookkeeping_seconds(plan, content, what, parts) for parts in (1, plan.ranks))
        percent = f"({number(100 * replicated / plan.step_seconds)} % of a step)"
        rows.append((name, *cells, f"{quantity(replicated, 's')} {percent}", quantity(sharded, "s")))
    here = [f"b = {batch:,}" for batch in BATCHES]
    head = "per update", *here, f"b = {plan.batch:,.0f}, N = {plan.examples:,.0f}", "if sharded"
    ratios = " and ".join(f"{ratio:.3f} (`{name}`)" for name, ratio in content["taken"]["over_uniform"].items())
    whole = f"With signals and cold caches an update of LeNet, b = 128, takes {ratios} times as long as a uniform one."
    enough = plan.batch * plan.examples * sweep_seconds(content) / (SMALL_SHARE * plan.step_seconds) / 1e6
    limits = f"{number(enough)} million; if sharded, {number(enough / plan.ranks)} million"
    sweeps = f"For sweeps of at most {100 * SMALL_SHARE:g} % of a step `sampler.fit_examples` has to be {limits}."
    return f"{table(head, rows)}\n\n{whole} {sweeps}"


def methods(plan: Plan, content: Content) -> str:
    pool_cost, history_cost = costs(plan, content)
    rows = []
    for tau2 in TAU2:
        gain = variance_gain(tau2, 1.0, plan.batch, plan.pool)
        ratio, best = best_pool(tau2, content["taken"]["forward_share"][MODEL])
        limits = [epochs_to_beat(max(1.0, best), variance_gain(tau2, rho), history_cost) for rho in RHOS]
        cells = [f"{limit:,.1f}" if limit < math.inf else "never" for limit in limits]
        rows.append((f"{tau2:g}", f"{gain:.2f}", f"{gain / pool_cost:.2f}", f"{best:.2f} ({ratio:.1f} b)", *cells))
    pools = f"gain, B = {plan.pool / plan.batch:g} b", "gain / cost", "gain / cost, best B"
    head = ("tau^2", *pools, *(f"rho = {rho}" for rho in RHOS))
    note = f"An update costs {pool_cost:.2f} uniform ones with presampling, {history_cost:.2f} with `prioritized`."
    return f"{table(head, rows)}\n\n{note}"


def simulation(content: Content) -> str:
    rows = []
    for row in content["simulated"]:
        sizes = f"{row['tau2']:g}", f"{row['rho']:g}", f"{row['pool']:,}", f"{row['batch']:,}"
        formula = variance_gain(row["tau2"], row["rho"], row["batch"], row["pool"])
        rows.append((*sizes, f"{formula:.2f}", f"{row['gain']:.2f} ± {row['error']:.2f}"))
    return table(("tau^2", "rho", "B", "b", "formula", f"mean of {TRIALS:,} draws ± standard error"), rows)


def visits(plan: Plan, content: Content) -> str:
    found: dict[tuple, list[dict[str, float]]] = {}
    for row in content["measured"]["visits"]:
        found.setdefault((row["signal"], row["from"], row["to"]), []).append(row)
    rows = []
    for (signal, first, last), seeds in found.items():
        mean = {key: statistics.mean(row[key] for row in seeds) for key in MEANS}
        formula = statistics.mean(variance_gain(row["tau2"], row["rho"]) for row in seeds)
        gains = [f"{value:.2f}" for value in (formula, mean["at_rho"], mean["at_one"], mean["best"])]
        gains[-1] += f" ({mean['best_exponent']:.2f})"
        name = f"`{signal}`, {first} and {last}"
        rows.append((name, f"{mean['tau2']:.1f}", f"{mean['rho']:.2f}", *gains, f"{mean['effective_rho']:.2f}"))
    powers = "gain: a = rho", "a = 1", "best a"
    head = ("score, ends of epochs", "tau^2", "rho", "formula", *powers, "rho that explains it")
    one = content["measured"]["visits"][0]
    where = f"LeNet on {one['dataset']}, means over {len(seeds)} seeds."
    length = f"An epoch has {one['updates_per_epoch']} updates here, {plan.examples / plan.batch:,.0f} in the plan."
    return f"{table(head, rows)}\n\n{where} {length}"


def picture(content: Content) -> Figure:
    """Draw gain per cost against tau^2 after many epochs, with simulated points, and against epochs at one tau^2."""
    plan = Plan(**content["plan"])
    pool_cost, history_cost = costs(plan, content)
    ratio = plan.pool / plan.batch
    ours, theirs = STYLES["upper_bound"].colour, STYLES["rais"].colour
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    tau2, epochs = np.geomspace(1, 20, 100), np.geomspace(1, 100, 100)

    def presampled(tau2: float) -> float:
        return variance_gain(tau2, 1.0, plan.batch, plan.pool) / pool_cost

    left.plot(tau2, [presampled(t) for t in tau2], color=ours, label=f"presampling, B = {ratio:g} b")
    right.axhline(presampled(SHOWN_TAU2), color=ours)
    for rho, dash in zip(RHOS, ("dotted", "dashed", "solid"), strict=True):
        style = {"color": theirs, "linestyle": dash}
        left.plot(tau2, [variance_gain(t, rho) / history_cost for t in tau2], **style, label=f"history, rho = {rho}")
        gain = variance_gain(SHOWN_TAU2, rho)
        right.plot(epochs, [history_speed(gain, history_cost, e) for e in epochs], **style)
    for row in content["simulated"]:
        if row["rho"] < 1:
            left.plot(row["tau2"], row["gain"] / history_cost, "o", markersize=4, color=theirs)
        elif row["batch"] == 128 and row["pool"] / row["batch"] == ratio:
            left.plot(row["tau2"], row["gain"] / pool_cost, "o", markersize=4, color=ours)
    for panel in (left, right):
        panel.axhline(1, color=INK, linewidth=0.8)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set(xlabel="tau^2", ylabel="Gain per cost, over uniform", title="After many epochs", ylim=(0, 5))
    right.set(xlabel="Epochs trained", title=f"tau^2 = {SHOWN_TAU2:g}")
    left.legend(loc="upper left")
    return figure


# From constants to a plan


def fitted_network(points: Iterable[dict[str, Any]], kind: str) -> tuple[float, float]:
    """Return the latency and bandwidth that fit the formula to two processes' seconds, by relative least squares."""
    mine = [point for point in points if point["kind"] == kind]
    parts = [[EXCHANGES[kind](p["bytes"], 2, 1, math.inf), EXCHANGES[kind](p["bytes"], 2, 0, 1)] for p in mine]
    seconds = np.array([[p["seconds"]] for p in mine])
    (latency, inverse), *_ = np.linalg.lstsq(np.array(parts) / seconds, np.ones(len(mine)), rcond=None)
    return float(latency), float(1 / inverse)


def bookkeeping_seconds(plan: Plan, content: Content, what: str, parts: float) -> float:
    """Return the host's seconds per update if each rank keeps the state of 1 / parts of all examples."""
    batch, examples = plan.batch / parts, plan.examples / parts
    rows = [row for row in content["measured"]["bookkeeping"] if row["what"] == what and row["examples"] == SMALL]
    seconds = power_law([(row["batch"], row["seconds"]) for row in rows], batch)
    if what == "prioritized":
        tree = content["taken"]["tree"]
        seconds += batch * (power_law(tree, examples) - power_law(tree, SMALL))
    if what == "rais":
        seconds += sweep_seconds(content) * (examples - SMALL) / math.ceil(FIT_EXAMPLES / plan.batch)
    return seconds


def sweep_seconds(content: Content) -> float:
    """Return the seconds per example of a sweep of `rais`, its prediction for all examples after each fit."""
    rows = content["measured"]["bookkeeping"]
    of = {row["examples"]: row["seconds"] for row in rows if (row["what"], row["batch"]) == ("rais", BATCHES[-1])}
    return (of[LARGE] - of[SMALL]) * math.ceil(FIT_EXAMPLES / BATCHES[-1]) / (LARGE - SMALL)


def costs(plan: Plan, content: Content) -> tuple[float, float]:
    """Return the cost of an update with presampling and of one with `prioritized`, in uniform updates."""
    network = plan.ranks, plan.latency, plan.bandwidth
    scoring = plan.pool / plan.batch * content["taken"]["forward_share"][MODEL]
    books = bookkeeping_seconds(plan, content, "prioritized", 1)
    return (
        1 + scoring + gather_seconds(4 * plan.pool, *network) / plan.step_seconds,
        1 + (books + gather_seconds(4 * plan.batch, *network)) / plan.step_seconds,
    )
