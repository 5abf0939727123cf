"""report.html of ``maesil evaluate``: complete by itself, and sorted and filtered in a real browser."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_factory import maesil, write_checkpoint
from PIL import Image
from training_factory import make_cache

from MAESILLib.evaluation.figures import figure_path
from MAESILLib.evaluation.page import FILL, distribution, page
from MAESILLib.metrics.catalogue import value_of

SHAPES = [(16, 24, 24), (24, 16, 24), (24, 24, 16), (16, 16, 24), (16, 24, 16), (24, 16, 16), (16, 17, 33)]
SETTINGS = ["dual 0.75", "complete dual 0.75", "auto-encoding"]
VOID = {"meta", "img"}
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,900"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def evaluate(data: Path, output: Path, *settings: object) -> None:
    options = ("--data", data / "cache", "--output", output, "--no-figures", "--html", "--progress", "off")
    maesil("evaluate", *options, "--settings", *settings).checked()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of two checkpoints on seven volumes, with pictures that take less time to draw than figures."""
    folder = tmp_path_factory.mktemp("evaluation")
    make_cache(folder / "cache", SHAPES, ["val"] * len(SHAPES))
    checkpoints = [write_checkpoint(folder / f"{name}.safetensors", seed) for seed, name in ((1, "one"), (2, "two"))]
    out = folder / "out"
    evaluate(folder, out, *SETTINGS, "--checkpoint", *checkpoints)
    result = json.loads((out / "evaluation.json").read_text())
    for row in result["rows"]:
        (out / figure_path(row)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 200)).save(out / figure_path(row))
    (out / "report.html").write_text(page(result, out), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "evaluation.json").read_text())


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(output: Path) -> None:
    text = (output / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    # the distribution, then three worst and three best of each checkpoint
    assert reader.seen.count("img") == len(reader.addresses) == 13
    assert reader.addresses[0].startswith("data:image/svg+xml;base64,")
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses[1:])
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_worst_and_best_are_by_the_drawn_setting(output: Path, result: dict[str, Any]) -> None:
    text = (output / "report.html").read_text()
    rows = [r for r in result["rows"] if (r["checkpoint"], r["setting"]) == ("two.safetensors", "dual 0.75")]
    order = [row["volume"] for row in sorted(rows, key=lambda row: row["psnr_masked_db"])]
    begin = text.index("Worst cases of two.safetensors")
    shown = re.findall(r'<img alt="(\w+): ', text[begin:])
    assert shown == [*order[:3], *order[:-4:-1]]


def test_names_are_text(result: dict[str, Any], tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>&'
    text = page(json.loads(json.dumps(result).replace('"v0"', json.dumps(nasty))), tmp_path)
    assert nasty not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)" in text


def test_pictures_of_another_evaluation_are_not_taken(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "out")
    # without it nobody knows whose the pictures are, so they stay
    (tmp_path / "out" / "evaluation.json").unlink()
    folder = output.parent
    evaluate(folder, tmp_path / "out", "dual 0.75", "--checkpoint", folder / "one.safetensors")
    assert list((tmp_path / "out").rglob("*.png"))
    assert "image/jpeg" not in (tmp_path / "out" / "report.html").read_text()


def test_each_checkpoint_has_pictures_of_its_own() -> None:
    names = ["a b.safetensors", "a_b.safetensors", "a", "a.safetensors", "x/a.safetensors", "x_a.safetensors", ".."]
    pairs = itertools.product(names, ("v", "v ", "v_"))
    paths = {figure_path({"checkpoint": checkpoint, "volume": volume}) for checkpoint, volume in pairs}
    assert len(paths) == 3 * len(names)
    assert all(path.count("/") == 2 and ".." not in path.split("/") for path in paths)


def test_distribution(result: dict[str, Any]) -> None:
    figure = distribution(result["rows"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == SETTINGS
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one.safetensors", "two.safetensors", FILL]
    # for each lane, dots and means
    for number, name in enumerate(("one.safetensors", "two.safetensors", FILL)):
        dots, means = axes.lines[2 * number : 2 * number + 2]
        metric = "harmonic" if name == FILL else "psnr"
        checkpoint = "one.safetensors" if name == FILL else name
        for place, setting in enumerate(SETTINGS):
            rows = [r for r in result["rows"] if (r["checkpoint"], r["setting"]) == (checkpoint, setting)]
            expected = [value for row in rows if (value := value_of(row, metric)) is not None]
            assert len(expected) == (0 if (name, setting) == (FILL, "auto-encoding") else 7)
            # the group of the setting, between the ticks' halves
            here = [line.get_xdata()[abs(line.get_ydata() - place) < 0.5] for line in (dots, means)]
            np.testing.assert_array_equal(here[0], expected)
            np.testing.assert_allclose(here[1], [np.mean(expected)] if expected else [])
    # no two lanes are at one height
    heights = [set(line.get_ydata()) for line in axes.lines[::2]]
    assert len(set().union(*heights)) == sum(len(one) for one in heights) == 3 + 3 + 2


def test_nothing_finite_has_no_picture(result: dict[str, Any], tmp_path: Path) -> None:
    row = {"checkpoint": "a", "setting": "dual 0.75", "volume": "v", "psnr_masked_db": None, "dataset": ""}
    assert distribution([row]) is None
    text = page(result | {"rows": [row], "summary": [], "differences": []}, tmp_path)
    assert "No PSNR is finite" in text
    assert "<img" not in text


def column(driver: Any, table: str, number: int) -> list[str]:
    script = (
        "return Array.from(document.getElementById(arguments[0]).tBodies[0].rows)"
        ".filter(r => !r.hidden).map(r => r.cells[arguments[1]].textContent)"
    )
    return driver.execute_script(script, table, number)


def head(driver: Any, table: str, text: str) -> tuple[Any, int]:
    buttons = driver.find_elements("css selector", f"#{table} th button")
    number = [button.get_property("textContent") for button in buttons].index(text)
    return buttons[number], number


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A selenium driver; skips without both programs, of Debian's packages chromium and chromium-driver."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile: Path = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


class TestBrowser:
    @pytest.fixture(autouse=True)
    def opened(self, browser: Any, output: Path) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        browser.get((output / "report.html").as_uri())
        # on a busy machine the driver answers before the page is whole
        WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.readyState") == "complete")

    def test_it_loads_without_a_complaint(self, browser: Any) -> None:
        assert browser.title == "Evaluation of one.safetensors, two.safetensors"
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        widths = browser.execute_script("return Array.from(document.images, i => i.complete && i.naturalWidth)")
        assert len(widths) == 13
        assert all(width >= 300 for width in widths)

    def test_a_click_sorts_by_value_and_back(self, browser: Any) -> None:
        button, number = head(browser, "volumes", "PSNR (dB)")
        before = [float(text) for text in column(browser, "volumes", number)]
        button.click()
        assert [float(text) for text in column(browser, "volumes", number)] == sorted(before)
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
        button.click()
        assert [float(text) for text in column(browser, "volumes", number)] == sorted(before, reverse=True)

    def test_empty_cells_come_last_either_way(self, browser: Any) -> None:
        button, number = head(browser, "summary", "harmonic fill (dB)")
        for _ in range(2):
            button.click()
            cells = column(browser, "summary", number)
            assert cells.count("") == 2
            assert cells[-2:] == ["", ""]

    def test_the_keyboard_sorts_text(self, browser: Any) -> None:
        button, number = head(browser, "summary", "setting")
        button.send_keys("\ue007")
        cells = column(browser, "summary", number)
        assert cells == sorted(cells)
        assert cells[0] == "auto-encoding"

    def test_filters_combine(self, browser: Any) -> None:
        for number, value in ((2, "two.safetensors"), (3, "auto-encoding")):
            options = browser.find_elements("css selector", f'select[data-column="{number}"] option')
            next(option for option in options if option.get_property("value") == value).click()
        assert sorted(column(browser, "volumes", 0)) == [f"v{n}" for n in range(7)]
        assert set(column(browser, "volumes", 3)) == {"auto-encoding"}

    def test_nothing_is_wider_than_the_window(self, browser: Any) -> None:
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
