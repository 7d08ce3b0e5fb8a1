"""report.html: one file, complete, that a browser shows without complaint."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from absl import flags

from cdfkd_tf import cli
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.monitoring import tile
from cdfkd_tf.errors import RequestError
from cdfkd_tf.report import charts
from cdfkd_tf.report.page import Section, render, write_report
from cdfkd_tf.report.tables import Table
from cdfkd_tf.workdir import Results, Workdir, read_history, read_json, write_json
from tests.rows import rows

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
NO_BROWSER = "no Chromium on PATH (Debian: apt-get install chromium)"
EXPORT = {
    "file": "x",
    "bytes": 200_000,
    "accuracy": 0.9,
    "agreement": 0.995,
    "max_abs_difference": 1e-7,
    "latency_ms": 0.05,
    "threads": 1,
    "operators": 80,
    "parameters": 50_000,
    "multiply_adds": 1_000_000,
}


def results_of(workdir, config):
    versions = {"cdfkd_tf": "0.1", "keras": "3.15"}
    about = {name: getattr(config, name) for name in ("dataset", "method", "seed")}
    asked = {"kind": config.aggregator, "labelled_samples": config.labelled_samples}
    return Results(workdir.results, {**about, "versions": versions}, asked)


def fill(folder, *, measured=True, classes=10):
    """A run folder as a pipeline leaves it, without the hours behind it."""
    workdir = Workdir(str(folder))
    config = RunConfig(dataset="digits", workdir=str(folder), epochs=7)
    results = results_of(workdir, config)
    accuracy = 0.9 if measured else None
    teacher = {"file": "a.keras", "parameters": 170_000, "accuracy": accuracy}
    results.record("teachers", [teacher] * 3)
    results.record("teacher_ensemble", {"parameters": 510_000, "accuracy": accuracy})
    student = {"parameters": 52_000, "accuracy": accuracy, "agreement": 0.97}
    results.record("student", {**student, "header_accuracy": [accuracy] * 3})
    results.record("aggregator", {"accuracy": accuracy, "mean_accuracy": accuracy})
    cost = {"multiply_adds": 6_000_000, "bytes": 700_000, "latency_ms": 0.15}
    results.record("teacher_costs", [cost] * 3)
    entries = [
        {**EXPORT, "format": name, "accuracy": accuracy}
        for name in ("saved_model", "tflite_float32", "tflite_int8")
    ]
    results.record("exports", entries)
    results.record("seconds", {"distill": 12.3})
    write_json(workdir.config, config.option_dict())
    workdir.history.write_text(
        "epoch,student_header,generator_bn,generator_balance,val_accuracy,agreement\n"
        "1,1.5,20,-0.3,0.5,0.4\n2,1.0,10,-0.4,,0.6\n3,0.8,9,-0.5,0.8,0.7\n"
    )
    rng = np.random.default_rng(0)
    workdir.samples.mkdir()
    for epoch in range(1, 8):
        tile(rng.uniform(size=(64, 8, 8, 1))).save(
            workdir.samples / f"epoch_{epoch:04d}.png"
        )
    table = {
        "classes": [f"<class {index}>" for index in range(classes)],
        "confusion_rows": "labels" if measured else "teachers",
        "confusion": rng.integers(0, 9, (classes, classes)).tolist(),
        "header_weights": [0.2, 0.3, 0.5],
        "header_weights_by_class": [None, *[[0.2, 0.3, 0.5]] * (classes - 1)],
        "invented_classes": rng.integers(1, 60, classes).tolist(),
    }
    write_json(workdir.observations, table)
    return workdir


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(fill(tmp_path_factory.mktemp("run")))


class _Reader(html.parser.HTMLParser):
    """Checks that tags close in order; collects what the page is made of."""

    EMPTY = {"meta", "link", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = _Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


def test_report_has_every_part(page):
    reader = read(page)
    text = " ".join(reader.text)
    assert reader.tags.count("table") == 3  # comparison, exports, seconds
    assert reader.tags.count("img") == 6
    assert reader.tags.count("svg") == 7  # the drawing, 3 curves, 3 on the answers
    for words in (
        "what three teachers know, without a single one",
        "90.00%",
        "52,000",
        "9.0 times as fast",
        "epoch 7",
        "tflite_int8",
        "--epochs=7",
        "keras 3.15",
        "<class 3>",
    ):
        assert words in text, words


def test_report_needs_nothing_from_elsewhere(page):
    reader = read(page)
    for name, value in reader.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:", "#")), value
    assert not {"script", "iframe", "object"} & set(reader.tags)
    text = page.read_text()
    assert "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    ids = [value for name, value in reader.attributes if name == "id"]
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert page.stat().st_size < 500_000


@pytest.mark.slow
def test_report_of_the_same_run_is_the_same(page):
    before = page.read_bytes()
    assert write_report(Workdir(str(page.parent))).read_bytes() == before


def with_readings(workdir, agreement, counts):
    """The run of `fill`, its first teacher's pixel values guessed, the next's read."""
    results, seen = read_json(workdir.results), read_json(workdir.observations)
    guess = "guessed: as most networks do; --teacher_input=... settles it"
    for teacher, evidence in zip(results["teachers"], [guess, "read from layer a<b>"]):
        teacher |= {"file": "my teachers/zwölf & <i>.keras", "input": "0..1",
                    "input_evidence": evidence, "output": "logits"}  # fmt: skip
    results["student"]["agreement"] = agreement
    write_json(workdir.results, results)
    write_json(workdir.observations, {**seen, "invented_classes": counts})
    return write_report(workdir).read_text()


@pytest.mark.slow
def test_report_calls_a_guess_a_guess(tmp_path):
    text = with_readings(fill(tmp_path), 0.97, [10] * 10)
    assert '<td class="words guess">guessed: as most networks do; --teacher_in' in text
    assert text.count('class="words guess"') == 1 and "a&lt;b&gt;" in text
    assert "my teachers/zwölf &amp; &lt;i&gt;.keras" in text
    assert "What is marked is a guess" in text and "may be the cause" not in text


@pytest.mark.slow
def test_report_names_a_guess_as_cause_of_collapse_and_chance(tmp_path):
    text = with_readings(fill(tmp_path), 0.1, [90, 10, *[0] * 8])
    assert (
        "Here the student agrees with its teachers on 10.00% and the images show "
        "about 1.4 of 10 classes: a wrong guess may be the cause."
    ) in text  # exp of -.9 log .9 - .1 log .1


@pytest.mark.slow
def test_report_takes_names_of_classes_as_they_are(tmp_path, recwarn):
    workdir = fill(tmp_path)
    seen = read_json(workdir.observations)
    names = ["$\\frac{$", "a_b^c", "猫", "$x$", "&amp;", "_x", "<b>", "%", "#", "'"]
    write_json(workdir.observations, {**seen, "classes": names})
    text = " ".join(read(write_report(workdir)).text)
    assert all(name in text for name in names), text
    assert not recwarn


def test_report_without_data_says_so(tmp_path):
    text = write_report(fill(tmp_path, measured=False, classes=101)).read_text()
    assert "No real image was there to measure on" in text
    assert "Accuracies were not measured" in text and "None" not in text


def test_report_leaves_out_what_is_not_there(tmp_path):
    workdir = Workdir(str(tmp_path))
    config = RunConfig(dataset="digits", method="kd")
    results_of(workdir, config).record("seconds", {"distill": 1})
    reader = read(write_report(workdir))
    assert "svg" in reader.tags and "img" not in reader.tags
    assert "table" not in reader.tags


def test_report_compares_sizes_of_networks_and_costs_of_files(page):
    text = re.sub(r"<[^>]*>", " ", page.read_text())
    rows = [line.split() for line in text.splitlines()]
    costs = ["1,000,000", "200,000", "0.05"]
    assert ["student", "90.00%", "52,000", *costs] in rows
    assert ["student,", "int8", "90.00%", "52,000", *costs] in rows
    total = ["90.00%", "510,000", "18,000,000", "2,100,000", "0.45"]
    assert ["teachers'", "mean", *total] in [
        [cell.replace("&#39;", "'") for cell in row] for row in rows
    ]


def arguments_of(path):
    """What a shell would give to main.py of the page's command."""
    found = re.search(r"<pre><code>(.*?)</code></pre>", path.read_text(), re.DOTALL)
    command = html.unescape(found[1])
    assert command.startswith("python main.py ")
    echo = command.replace("python main.py", "printf '%s\\n'", 1)
    answer = subprocess.run(["sh", "-c", echo], capture_output=True, text=True)
    return answer.stdout.splitlines()


def test_report_quotes_the_command_for_a_shell(tmp_path):
    folder = tmp_path / "my runs; $(echo 'it' & \"more\")"
    folder.mkdir()
    flags = [f"--workdir={folder}", "--dataset=digits", "--epochs=7"]
    assert arguments_of(write_report(fill(folder))) == flags


@pytest.mark.slow
def test_search_report_quotes_the_command_for_a_shell(tmp_path):
    from cdfkd_tf.tuning.summary import summarise

    folder = tmp_path / "it's my run"
    config = RunConfig(dataset="digits", workdir=str(folder))
    trial = {"trial": "0", "status": "finished", "objective": 0.9, "epochs": 1,
             "test_accuracy": 0.8, "seconds": 1.0, "values": {"batch_size": 8},
             "options": {"batch_size": 8}, "reason": ""}  # fmt: skip
    summarise(config, [trial]).write()
    page = folder / "search/report.html"
    assert arguments_of(page) == [f"--flagfile={folder}/search/best.flags"]
    reader = read(page)
    assert reader.tags.count("svg") == 2 and reader.tags.count("table") == 1
    assert "<b>0.9000</b>, test 80.00%" in page.read_text()


def test_render_escapes_all_text(tmp_path):
    table = Table("<1>", ("<2>", "<3>"), [("<4>", "<5>"), ("*<6>", "<7>")])
    chart = charts.points([("<8>", 1)], "<9>", "<a>", "<b>")
    section = Section("<c>", "<d>", [chart], {"<e>": "data:,"}, "<f>", ["<g>"], table)
    page = tmp_path / "page.html"
    page.write_text(
        render("<h>", [section, Section("empty")], kicker="<i>", question="<j>",
               lead="<k> *<l>*")
    )  # fmt: skip
    reader = read(page)
    seen = " ".join([*reader.text, *(value for _, value in reader.attributes if value)])
    for name in "123456789abcdefghijkl":
        assert f"<{name}>" in seen, name
    assert "empty" not in seen and reader.tags.count("figure") == 2


@pytest.mark.slow
@rows("teachers, headers", [(1, 1), (3, 2), (9, 4)])
@rows("given", ["", "real", "unrelated"])
def test_render_draws_up_to_four_of_a_kind(teachers, headers, given):
    drawing = (teachers, headers, given)
    page = render("", [], kicker="", question="", lead="", drawing=drawing)
    boxes = min(4, teachers) + min(4, headers) + 1 + bool(given)
    assert page.count("<rect") == boxes
    assert f"student, {headers} header{'s' * (headers > 1)}<" in page
    assert (">generator<" in page) is (not given) is (">images<" not in page)
    assert not given or f">{given}<" in page


def test_read_history_gives_columns_with_gaps(tmp_path):
    history = read_history(fill(tmp_path).history)
    assert next(iter(history)) == "student_header" and "epoch" not in history
    assert history["generator_bn"] == [20, 10, 9]
    assert history["val_accuracy"] == [0.5, None, 0.8]
    assert read_history(tmp_path / "none.csv") == {}


def test_read_history_refuses_what_was_changed_by_hand(tmp_path):
    for text in ["epoch,loss\n1,low\n", "epoch,loss\n1\n", "a\n\xe4"]:
        file = tmp_path / "history.csv"
        file.write_text(text, encoding="latin-1")
        with pytest.raises(RequestError, match="is not as this package wrote it"):
            read_history(file)


@pytest.mark.slow
def test_report_is_an_action(page, tmp_path, capsys):
    def report_on(folder):
        line = ["main.py", "--action=report", f"--workdir={folder}"]
        return cli.main(line, flags.FlagValues())

    page.unlink()
    assert report_on(page.parent) == 0
    assert page.exists()
    assert report_on(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "holds no results.json" in error


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason=NO_BROWSER)
@rows("width", [390, 1200])
def test_report_is_shown_by_a_browser_without_complaint(page, tmp_path, width):
    """A copy that also tells what the browser made of it."""
    write_report(Workdir(str(page.parent)))
    probe = """<script>
    const broken = [...document.images].filter(image => !image.naturalWidth).length;
    const flat = [...document.querySelectorAll('svg, table, img')].filter(
        part => part.getBoundingClientRect().height < 40).length;
    document.title = JSON.stringify({broken, flat, images: document.images.length,
        overflow: document.documentElement.scrollWidth - window.innerWidth,
        fetched: performance.getEntriesByType('resource').filter(
            entry => !entry.name.startsWith('data:')).length});
    </script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    answer = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--disable-dev-shm-usage", "--enable-logging=stderr", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000",
         copy.as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    complaints = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    seen = json.loads(re.search(r"<title>(\{.*?\})</title>", answer.stdout).group(1))
    assert seen["images"] == 6
    assert seen["broken"] == seen["flat"] == seen["fetched"] == 0
    assert seen["overflow"] <= 0  # nobody scrolls a page sideways
