"""The pages in a real browser: what they show and do, that they fit, complain of nothing and fetch nothing."""

import json
import shutil
from pathlib import Path

import pytest

from isbench.report import collect
from isbench.report.__main__ import main
from tests.browser import PROGRAM, Browser
from tests.report_samples import write_run

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian: apt install chromium)")
ROOT = Path(__file__).resolve().parents[1]
SLOPES = {"uniform": 0.010, "loss": 0.012, "upper_bound": 0.020}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The index of one experiment, and the page of a grid: three arms whose errors fall in straight lines."""
    folder = tmp_path_factory.mktemp("pages")
    runs = folder / "runs" / "is_mnist_small"
    for seed in range(3):
        for arm, slope in SLOPES.items():
            curve = [(float(t), 0.9 - (slope + seed / 2000) * t) for t in range(21)]
            write_run(runs, arm, seed, curve, arm=arm, update_seconds=0.1 if arm == "uniform" else 0.2)
    collect.collect(runs, folder / "results" / "is_mnist_small")
    assert main(["--results", str(folder / "results")]) == 0
    assert main([str(runs), "--out", str(folder / "mine")]) == 0
    return {"index": folder / "results" / "index.html", "mine": folder / "mine" / "report.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def shown(browser, selector):
    """The text of all elements that are drawn."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].filter((each) => each.checkVisibility())"
    return browser.run(f"{found}.map((each) => each.innerText.trim())")


def click(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


@pytest.mark.parametrize("name", ["index", "mine"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_page_fits_complains_of_nothing_and_fetches_nothing_but_itself(pages, browser, name, width, scheme):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[name], width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 64) == (scheme == "dark")
    assert browser.run("document.querySelectorAll('figure.chart svg .mean').length") >= 8
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [pages[name].resolve().as_uri()]


@pytest.mark.parametrize(("scheme", "contrast"), [("light", -1), ("dark", 1)])
def test_the_baseline_is_the_line_that_stands_out_most(pages, browser, scheme, contrast):
    browser.open(pages["mine"], scheme=scheme)
    lines = "[...document.querySelectorAll('figure.chart svg:first-child .mean')]"
    strokes = browser.run(f"{lines}.map((line) => getComputedStyle(line).stroke)")
    *others, uniform = [float(stroke[6:].split()[0]) for stroke in strokes]  # oklch(lightness ...
    assert contrast * uniform > max(contrast * other for other in others) and abs(uniform - 0.5) > 0.2


def test_tables_fit_a_laptop(browser):
    browser.open(Path(__file__).parent.parent / "results" / "index.html", width=1200)
    wide = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
    assert browser.run(wide) == 0


def test_the_switch_changes_tables_and_charts(pages, browser):
    browser.open(pages["index"])
    assert shown(browser, 'td[data-label="updates"]') == ["100", "100"]
    click(browser, 'button[data-to="updates"]')
    assert shown(browser, 'td[data-label="updates"]') == ["100", "100"]
    assert shown(browser, 'td[data-label="seconds"]') == ["20.0", "20.0"], "twice as long for as many"
    labels = browser.run("[...document.querySelectorAll('figure.chart svg')].map((e) => e.getAttribute('aria-label'))")
    assert labels and all(label.endswith("against Updates") for label in labels)


def test_a_table_sorts_by_what_it_shows(pages, browser):
    browser.open(pages["index"])
    names = 'table.sortable tbody th[scope="row"]'
    click(browser, "table.sortable thead th:nth-child(4) button")  # the error
    assert shown(browser, names) == ["Upper bound", "Loss"]
    click(browser, "table.sortable thead th:nth-child(4) button")
    assert shown(browser, names) == ["Loss", "Upper bound"]
    assert browser.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"


def test_filters_leave_what_was_asked_for(pages, browser):
    browser.open(pages["index"])
    assert shown(browser, "output") == ["variants shown: 2, experiments: 1"]
    for choice, value, left in (
        ("paper", "rais", 0),
        ("paper", "is", 2),
        ("size", "published", 0),
        ("size", "smaller", 2),
    ):
        choose = f"const menu = document.querySelector('[data-filter={choice}]'); menu.value = '{value}';"
        browser.run(f"{{ {choose} menu.dispatchEvent(new Event('change')) }}")
        assert len(shown(browser, "tr[data-paper]")) == left


def test_a_variant_is_left_out_where_it_has_no_number(pages, browser):
    browser.open(pages["index"])
    lost = """for (const each of document.querySelector("tr[data-paper]").querySelectorAll('[data-at="seconds"]'))
        each.dataset.value = "";"""
    browser.run(lost)
    for axis, said in (
        ("updates", "variants shown: 2, experiments: 1"),
        ("seconds", "variants shown: 1, not compared at equal seconds: 1, experiments: 1"),
    ):
        click(browser, f'button[data-to="{axis}"]')
        assert shown(browser, "output") == [said]


def test_the_mouse_over_a_chart_reads_its_numbers(pages, browser):
    browser.open(pages["index"])
    assert shown(browser, ".tip") == []
    browser.point("figure.chart svg", 0.6)
    (text,) = shown(browser, ".tip")
    assert "Training time (s):" in text and "Upper bound:" in text and "Uniform:" in text and "[" in text


def test_a_line_is_hidden_by_its_button(pages, browser):
    browser.open(pages["mine"])
    before = browser.run("document.querySelectorAll('figure.chart .mean').length")
    click(browser, "figure.chart .lines button")
    assert browser.run("document.querySelectorAll('figure.chart .mean').length") < before


def test_the_command_is_copied(pages, browser):
    browser.open(pages["index"])
    click(browser, "article button.copy")
    assert browser.run("navigator.clipboard.readText()") == "python -m isbench -m experiment=is/is_mnist_small"
    assert shown(browser, "article button.copy") == ["Copied"]


def test_the_numbers_of_a_chart_are_a_table(pages, browser):
    browser.open(pages["index"])
    click(browser, "figure.chart a.csv")
    text = browser.run("fetch(document.querySelector('figure.chart a.csv').href).then((answer) => answer.text())")
    head, *rows = text.splitlines()
    assert head == '"panel","line","n","axis","x","mean","low","high"' and len(rows) > 100
    assert any(row.startswith('"Test error (%)","Upper bound","3","seconds"') for row in rows)


def test_a_speed_up_known_from_below_alone_is_a_mark_and_an_interval_without_end_reaches_the_edge(browser, tmp_path):
    shutil.copytree(ROOT / "results" / "screen_mnist_noise_10", tmp_path / "screen_mnist_noise_10")
    assert main(["--results", str(tmp_path)]) == 0
    browser.open(tmp_path / "index.html")
    panel = "document.querySelector('figure.chart svg:last-of-type')"
    lengths = f"[...{panel}.querySelectorAll('.bar')].map((bar) => [bar.getBBox().y, bar.getBBox().height])"
    (y, height), (endless_y, endless) = browser.run(lengths)
    top = browser.run(f"{panel}.querySelector('clipPath rect').y.baseVal.value")
    assert endless_y <= top + 3 < top + 10 < y and 0 < height < endless
    assert browser.run(f"{panel}.querySelectorAll('circle.point').length") == 2
    assert browser.run(f"{panel}.querySelectorAll('path.point').length") == 1
    for at, number in ((0.55, "2.88 [2.34, ∞]"), (0.8, "above 1.66")):
        browser.point("figure.chart svg:last-of-type", at)
        (text,) = shown(browser, ".tip")
        assert number in text


def test_a_speed_up_whose_interval_begins_at_nothing_is_drawn(browser, tmp_path):
    shutil.copytree(ROOT / "results" / "screen_mnist_rivals", tmp_path / "screen_mnist_rivals")
    assert main(["--results", str(tmp_path)]) == 0
    browser.open(tmp_path / "index.html")
    panel = "document.querySelector('figure.chart svg:last-of-type')"
    assert browser.run(f"{panel}.querySelectorAll('circle.point').length") == 5
    assert browser.run(f"{panel}.querySelectorAll('path.point').length") == 2, (
        "screening above 1.76 [1.48, inf], RHO-LOSS"
    )
    lengths = browser.run(f"[...{panel}.querySelectorAll('.bar')].map((bar) => bar.getBBox().height)")
    assert len(lengths) == 6, "one for selective backprop, too: 0.55 [0, 0.89]"
    assert all(0 < length < 400 for length in lengths)
