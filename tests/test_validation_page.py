"""The page that `synthex-fast validate --html` writes: what is on it, and how it looks in a browser."""

import base64
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import browser
import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import validation_results

from synthex_fast import cli
from synthex_fast.validate import figures, page
from synthex_fast.validate.page import plots
from synthex_fast.validate.report import number
from synthex_fast.validate.rounds import _environment

BENCH = Path(__file__).parents[1] / "bench"
PLOTS = ("improvements", "throughput", "latency", "pauses", "memory")


@pytest.fixture(scope="module")
def found():
    return validation_results.found()


@pytest.fixture(scope="module")
def html(found):
    return page.render(found)


@pytest.mark.slow
class TestPage:
    def test_every_row_of_the_json_is_there_with_its_figures(self, found, html):
        for row in found["rows"]:
            if row["in_line"]:
                continue
            (text,) = re.findall(rf'<tr id="row-{re.escape(row["key"])}">(.*?)</tr>', html, re.S)
            assert row["report_target"].replace("<", "&lt;").replace(">", "&gt;") in text
            for arm, figure in row["arms"].items():
                assert number(figure["median"]) in text, (row["key"], arm)
            for verdict in (*row["target_met"].values(), row["our_target_met"].get("synthex_fast")):
                assert verdict is None or f" {verdict}</b>" in text

    def test_every_plot_is_there_in_both_forms(self, html):
        assert re.findall(r'<section id="plot-(\w+)">', html) == list(PLOTS)
        assert len(re.findall(r"<svg ", html)) == 2 * len(PLOTS)

    def test_plots_say_in_words_what_they_show(self, found, html):
        drawings = re.findall(r"<svg [^>]*>.*?</svg>", html, re.S)
        for drawing in drawings:
            title, description = re.search(
                r"<title [^>]*>(.+?)</title><desc [^>]*>(.+?)</desc>", drawing, re.S
            ).groups()
            labelled = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', drawing).groups()
            for identifier in labelled:
                assert f'id="{identifier}"' in drawing
            assert title
            assert "synthex_fast" in description or "this package" in description
        (row,) = (row for row in found["rows"] if row["key"] == "throughput")
        assert plots.amount(row["arms"]["synthex_fast"]["median"]) in drawings[2]

    def test_drawings_are_well_formed_and_name_nothing_outside_themselves(self, html):
        seen = set()
        for drawing in re.findall(r"<svg [^>]*>.*?</svg>", html, re.S):
            root = xml.fromstring(drawing.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
            own = [element.get("id") for element in root.iter() if element.get("id")]
            assert len(set(own)) == len(own)
            assert not seen & set(own)
            seen |= set(own)
            named = re.findall(r'(?:xlink:href="|url\()([^")]+)', drawing)
            assert named
            assert {name.removeprefix("#") for name in named} <= set(own)

    def test_colours_are_all_the_pages_own(self, html):
        for drawing in re.findall(r"<svg [^>]*>.*?</svg>", html, re.S):
            assert not re.findall(r"(?:fill|stroke|color)\s*[:=]\s*\"?#[0-9a-fA-F]{3,6}", drawing)
            assert "var(--synthex_fast)" in drawing
        used = set(re.findall(r"var\((--[\w-]+)\)", html))
        style = html[: html.index("</style>")]
        light, dark = style.split("prefers-color-scheme: dark")
        for variable in used:
            assert f"{variable}:" in light
            assert variable == "--sans" or f"{variable}:" in dark

    def test_text_in_plots_is_text(self, html):
        words = " ".join(re.findall(r"<text [^>]*>(.*?)</text>", html))
        for expected in (
            "requests a second",
            "p99.9",
            "killed",
            "limit 256 MB",
            "report's target",
            "our target",
        ):
            assert expected.replace("'", "&#x27;") in words or expected in words, expected

    def test_conditions_are_told(self, found, html):
        environment = found["environment"]
        for value in (
            "synthex-fast validate --seed 1",
            environment["finished_at"],
            environment["platform"],
            environment["python"],
            *(f"{name} {version}" for name, version in environment["versions"].items() if version),
        ):
            assert value in html
        assert "<dt>seed</dt><dd>1</dd>" in html
        assert environment["commit"] is None or environment["commit"] in html

    def test_it_is_one_file_that_fetches_nothing(self, html):
        assert not re.findall(
            r"<(?:script|iframe|img|object|embed|link(?! rel=\"icon\" href=\"data:,\"))\b", html
        )
        assert not re.findall(r"(?:src|href)=\"(?!#|data:)", html)
        assert "@import" not in html
        assert "default-src 'none'" in html

    def test_whatever_a_file_holds_is_only_shown(self, found):
        found = json.loads(json.dumps(found))
        evil = "<img src=x onerror=alert(1)>\"'&</style></title>"
        found["rows"][0] |= {"label": evil, "unit": evil, "report_current": evil, "report_target": evil}
        found["rows"][0]["section"] = found["rows"][0]["our_target"] = found["rows"][0]["key"] = evil
        found["footnotes"] = [evil]
        found["environment"] |= {"processor": evil, "platform": evil, "commit": evil, "arguments": [evil]}
        text = page.render(found)
        assert "<img" not in text
        assert text.count("</style>") == 1
        assert "&lt;img src=x onerror=alert(1)&gt;" in text

    def test_attributes_are_quoted_where_they_hold_several_words(self, html):
        assert not re.findall(r"<[^>]* class=[^\"]", html)
        assert 'class="several ours"' in html

    def test_a_figure_is_never_shown_with_a_verdict_it_did_not_get(self, found):
        found = json.loads(json.dumps(found))
        for row in found["rows"]:
            row["target_met"] = dict.fromkeys(row["target_met"], "unclear")
            row["our_target_met"] = dict.fromkeys(row["our_target_met"], "missed")
        text = page.render(found)
        assert "</b>: the whole interval" in text  # the legend
        assert " met</b></small>" not in text
        assert "0 of " in text

    def test_an_interrupted_run_is_called_so(self, found, html):
        assert "interrupted" not in html
        assert "interrupted" in page.render({**found, "complete": False})

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"http": False, "limit": False}, PLOTS),
            ({"arms": ("synthex_fast",), "http": False, "limit": False}, PLOTS[1:]),
            ({"arms": ("current",), "http": True, "limit": False}, PLOTS[1:]),
            ({"rounds": 1, "http": False, "limit": False}, PLOTS),
        ],
    )
    def test_plots_without_data_are_left_out(self, options, expected):
        text = page.render(validation_results.found(**options))
        assert tuple(re.findall(r'<section id="plot-(\w+)">', text)) == expected

    def test_nothing_measured_makes_no_plot(self, found):
        empty = {**found, "rows": [], "rounds": {}, "http": {}, "limit": {}}
        assert 'id="plot-' not in page.render(empty)

    def test_no_collection_at_all_is_said(self):
        results = validation_results.found(http=False, limit=False)
        for done in results["rounds"]["tuned_by_hand"]:
            done["pauses"] = []
        assert "no collection" in page.render(results)

    def test_the_same_results_make_the_same_page(self, found, html):
        assert page.render(found) == html

    def test_percentiles_are_those_of_the_rounds(self, found):
        curve = plots._curve(found["rounds"]["current"], 1.0)
        assert [share for share, *_ in curve] == list(figures.QUANTILES)
        for place, (_, middle, low, high) in enumerate(curve):
            values = sorted(done["percentiles"][place][1] for done in found["rounds"]["current"])
            assert middle == values[3]
            assert values[0] <= low <= middle <= high <= values[-1]


class TestCommand:
    @pytest.fixture
    def results(self, tmp_path, found):
        path = tmp_path / "results.json"
        path.write_text(json.dumps(found))
        return str(path)

    def test_a_page_is_made_of_earlier_results(self, results, tmp_path, html):
        path = tmp_path / "page.html"
        assert cli.main(["validate", "--from", results, "--html", str(path)]) == 0
        assert path.read_text(encoding="utf-8") == html
        assert sorted(os.listdir(tmp_path)) == ["page.html", "results.json"]

    @pytest.mark.parametrize("path", ["/nowhere/at/all.html", os.curdir, ""])
    def test_where_nothing_can_be_written_nothing_is_run(self, path, capsys, monkeypatch):
        monkeypatch.setattr("synthex_fast.validate.rounds.run", lambda *_: pytest.fail("it ran"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--html", path])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert f"argument --html: can't write {path!r}" in shown.err

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--from", "RESULTS"], "argument --from: needs --html"),
            (["--from", "RESULTS", "--html", "PAGE", "--seconds", "9"], "--from: not allowed with --seconds"),
            (["--from", "RESULTS", "--html", "PAGE", "--json", "x.json"], "--from: not allowed with --json"),
            (["--from", "RESULTS", "--html", "PAGE", "--arms", "current"], "--from: not allowed with --arms"),
            (["--from", "RESULTS", "--html", "PAGE", "--seed", "1"], "--from: not allowed with --seed"),
            (["--from", "nowhere.json", "--html", "PAGE"], "can't read 'nowhere.json'"),
            (["--compare", "RESULTS", "RESULTS", "--html", "PAGE"], "--compare: not allowed with --html"),
            (["--from", "RESULTS", "--html", "PAGE", "--limit", "1GB"], "--from: not allowed with --limit"),
            (
                ["--from", "RESULTS", "--html", "results.json"],
                "argument --html: is the file that --from reads",
            ),
            (["--json", "x.json", "--html", "./x.json"], "argument --html: is the file that --json writes"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, arguments, complaint, results, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        given = [{"RESULTS": results, "PAGE": "page.html"}.get(each, each) for each in arguments]
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", *given])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert complaint in shown.err
        assert os.listdir(tmp_path) == ["results.json"]

    @pytest.mark.parametrize("lost", ["footnotes", "rounds", "environment", "complete", "http"])
    def test_a_file_that_lacks_what_the_page_needs_is_refused(self, lost, found, tmp_path, capsys):
        path, written = tmp_path / "damaged.json", tmp_path / "page.html"
        path.write_text(json.dumps({key: value for key, value in found.items() if key != lost}))
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--from", str(path), "--html", str(written)])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert "is damaged" in shown.err
        assert not written.exists()

    @pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
    def test_it_can_be_written_to_a_pipe(self, results, monkeypatch):
        monkeypatch.setattr(page, "render", lambda _: "the page")
        reading, writing = os.pipe()
        try:
            assert cli.main(["validate", "--from", results, "--html", f"/dev/fd/{writing}"]) == 0
        finally:
            os.close(writing)
        with open(reading) as pipe:
            assert pipe.read() == "the page"

    def test_without_matplotlib_the_extra_is_named(self, results, tmp_path, capsys, monkeypatch):
        there = cli.find_spec
        monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else there(name))
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--html", str(tmp_path / "page.html")])
        assert ended.value.code == 2
        assert "pip install synthex-fast[html]" in capsys.readouterr().err

    def test_a_page_that_fails_leaves_the_old_one(self, results, tmp_path, monkeypatch):
        path = tmp_path / "page.html"
        path.write_text("the old one")

        def broken(_):
            raise RuntimeError

        monkeypatch.setattr(page, "render", broken)
        with pytest.raises(RuntimeError):
            cli.main(["validate", "--from", results, "--html", str(path)])
        assert path.read_text() == "the old one"
        assert sorted(os.listdir(tmp_path)) == ["page.html", "results.json"]

    def test_a_disk_that_is_full_leaves_the_old_page(self, results, tmp_path, monkeypatch, capsys):
        path = tmp_path / "page.html"
        path.write_text("the old one")
        monkeypatch.setattr(page, "render", lambda _: "x" * 100_000)
        opened = cli.Path.open

        def full(self, *arguments, **options):
            file = opened(self, *arguments, **options)
            if self.suffix == ".part":

                def write(_):
                    raise OSError(28, "No space left on device")

                file.write = write
            return file

        monkeypatch.setattr(cli.Path, "open", full)
        assert cli.main(["validate", "--from", results, "--html", str(path)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert path.read_text() == "the old one"
        assert sorted(os.listdir(tmp_path)) == ["page.html", "results.json"]

    @pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
    def test_a_link_is_followed_and_stays(self, results, tmp_path, html):
        real, link = tmp_path / "real.html", tmp_path / "link.html"
        real.write_text("the old one")
        link.symlink_to(real)
        assert cli.main(["validate", "--from", results, "--html", str(link)]) == 0
        assert link.is_symlink()
        assert real.read_text(encoding="utf-8") == html


@pytest.fixture(scope="module")
def opened(html, tmp_path_factory):
    pytest.importorskip("websockets")
    if browser.CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(html, encoding="utf-8")
    started = browser.Browser()
    yield lambda **options: started.open(path.as_uri(), **options) or started
    started.close()


@pytest.mark.slow
class TestBrowser:
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    @pytest.mark.parametrize("width", [390, 820, 1280], ids=["phone", "tablet", "desktop"])
    def test_it_opens_without_error_request_or_overflow(self, opened, found, width, dark):
        shown = opened(width=width, dark=dark)
        assert shown.errors == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
        assert shown.eval("document.documentElement.scrollWidth") <= width
        text = shown.text("#figures")
        for row in found["rows"]:
            if row["key"] in ("throughput", "latency_p99", "allocated_per_request"):
                for figure in row["arms"].values():
                    assert number(figure["median"]) in text
        visible = shown.eval(
            "[...document.querySelectorAll('figure svg')].filter(e => e.checkVisibility()).length"
        )
        assert visible == len(PLOTS)

    @pytest.mark.parametrize("width", [390, 1280])
    def test_labels_in_plots_are_neither_tiny_nor_outside(self, opened, width):
        shown = opened(width=width)
        sizes = shown.eval(
            "[...document.querySelectorAll('figure svg text')].filter(e => e.checkVisibility())"
            ".map(e => { const b = e.getBoundingClientRect();"
            " return [Math.min(b.height, b.width), b.left, b.right, e.textContent]; })"
        )
        assert len(sizes) > 50
        for size, left, right, text in sizes:
            assert size > 4, text
            assert left >= 0, text
            assert right <= width, text

    def test_it_follows_the_colour_scheme(self, opened):
        colours = {}
        for dark in (False, True):
            shown = opened(dark=dark)
            colours[dark] = shown.eval(
                "[getComputedStyle(document.documentElement).backgroundColor,"
                " ...[...document.querySelectorAll('#plot-latency .wide text')].map(e => getComputedStyle(e).fill)]"
            )
            picture = shown.call("Page.captureScreenshot", format="png")["data"]
            assert len(base64.b64decode(picture)) > 10_000
        assert len(colours[False]) > 10
        assert all(light != dark for light, dark in zip(colours[False], colours[True], strict=True))

    def test_its_structure_is_there_for_those_who_listen(self, opened):
        shown = opened()
        assert shown.eval("document.documentElement.lang") == "en"
        assert shown.eval("document.querySelectorAll('h1').length") == 1
        assert shown.eval("document.querySelectorAll('tbody th[scope=row]').length") > 15
        assert shown.eval(
            "[...document.querySelectorAll('figure svg')].every(e => e.getAttribute('role') === 'img' &&"
            " e.getAttribute('aria-labelledby').split(' ').every(i => document.getElementById(i).textContent))"
        )


@pytest.mark.slow
@pytest.mark.skipif(
    not (BENCH / "validation.py").exists(), reason="bench/ is not part of an installed package"
)
class TestDocumentation:
    """bench/validation.py, which makes the documentation's page of a run."""

    @pytest.fixture
    def make(self, found, tmp_path):
        results = tmp_path / "results.json"
        results.write_text(json.dumps(found))

        def run(*arguments):
            finished = subprocess.run(
                [
                    sys.executable,
                    str(BENCH / "validation.py"),
                    *arguments,
                    "--directory",
                    str(tmp_path / "docs"),
                ],
                capture_output=True,
                text=True,
                env=_environment(),
            )
            return finished, tmp_path / "docs" / "validation.md"

        return run, str(results)

    def test_the_page_has_the_table_the_plots_and_the_conditions(self, make, found):
        run, results = make
        finished, written = run(results)
        assert finished.returncode == 0, finished.stderr
        text = written.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        assert len({line.count("|") for line in lines}) == 1
        for row in found["rows"]:
            if not row["in_line"]:
                name = f"{row['label']}, {row['unit']}" if row["unit"] else row["label"]
                (line,) = (line for line in lines if line.startswith(f"| {name} |"))
                assert all(number(figure["median"]) in line for figure in row["arms"].values())
        images = re.findall(r"!\[[^]]+\]\((plots/[\w-]+\.svg)\)", text)
        assert [re.search(r"-(\w+)\.", image)[1] for image in images] == list(PLOTS)
        for image in images:
            drawing = (written.parent / image).read_text(encoding="utf-8")
            assert xml.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(" not in drawing
        assert "`synthex-fast validate --seed 1`" in text

    def test_a_soak_is_shown_beside_it_and_nobodys_directories_are(self, make, found, tmp_path):
        run, results = make
        environment = found["environment"] | {"arguments": ["soak", "--json", "/home/ada/day 1.json"]}
        rows = [
            {"key": "a", "label": "growth", "unit": "%", "value": 0.5, "report": "< 1 %", "report_met": True}
            | {"reach": "< 0.1 %", "reach_met": False, "note": ""},
            {"key": "b", "label": "leaks", "unit": "", "value": None, "report": "none", "report_met": None}
            | {"reach": None, "reach_met": None, "note": "needs a simulated day"},
        ]
        soaked = tmp_path / "soak.json"
        soaked.write_text(json.dumps({"environment": environment, "rows": rows}))
        finished, written = run(results, "--soak", str(soaked))
        assert finished.returncode == 0, finished.stderr
        text = written.read_text(encoding="utf-8")
        assert "`synthex-fast soak --json 'day 1.json'`" in text
        assert "/home" not in text
        assert "| growth | 0.5 % | < 1 % | met | < 0.1 % | **missed** |" in text
        assert "| leaks | needs a simulated day | none |  |  |  |" in text

    def test_what_is_written_by_hand_stays(self, make):
        run, results = make
        _, written = run(results)
        text = written.read_text(encoding="utf-8")
        before, begin, rest = text.partition("<!-- by hand -->")
        _, end, after = rest.partition("<!-- end of what is by hand -->")
        written.write_text(before + begin + "\nWhy: {braces} stay too.\n" + end + "OLD", encoding="utf-8")
        run(results)
        again = written.read_text(encoding="utf-8")
        assert again == before + begin + "\nWhy: {braces} stay too.\n" + end + after

    def test_other_files_are_refused(self, make, tmp_path):
        run, _ = make
        other = tmp_path / "other.json"
        other.write_text("{}")
        finished, written = run(str(other))
        assert finished.returncode == 2
        assert "was not written by" in finished.stderr
        assert not written.exists()
