"""The page: question, drawing, tables, charts, pictures, command; nothing fetched."""

import base64
import csv
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.report import charts, tables
from cdfkd_tf.report.drawing import idea
from cdfkd_tf.results import read_results
from cdfkd_tf.workdir import Workdir, read_json, write_text

_STYLE = pathlib.Path(__file__).with_name("page.css")
# Columns of history.csv and what they are called.
_SHARES = {
    "val_accuracy": "accuracy",
    "agreement": "agreement, newest images",
    "agreement_earlier": "agreement, earlier images",
}
_PICTURES, _PICTURE_PIXELS = 6, 264


def write_report(workdir: Workdir) -> pathlib.Path:
    """Writes `report.html` from what the run left in its folder.

    What was not measured, or not kept, is left out.

    Returns:
        The page's path.

    Raises:
        RequestError: if the folder holds no results.
    """
    results = read_results(workdir.results)
    if not results:
        raise RequestError(
            f"{workdir.path} holds no results.json to report on. Run --action=pipeline "
            "first, or check --workdir."
        )
    config = read_json(workdir.config)
    seen = read_json(workdir.observations)
    history = _history(workdir.history)
    sections = [
        _opening(results, config),
        section(
            "Teachers and student",
            _costs_note(results),
            tables.comparison(results) if results["teachers"] else "",
        ),
        section("How it learned", "", _curves(history)),
        section(
            "Invented images over time",
            "What the generator drew, from the same noise, as training went on.",
            _pictures(workdir.samples),
        ),
        section("What it answers", _confusion_note(seen), _answers(seen)),
        section(
            "Files for devices",
            "Each was loaded again and compared with the Keras model on the same "
            "images. Latency: median of one image, one thread, warm (the SavedModel "
            "as TensorFlow runs it).",
            tables.exports(results) if results["exports"] else "",
        ),
        section("Do it again", "", _command(config, results)),
    ]
    title = f"{results['dataset']}, {results['method']}, seed {results['seed']}"
    write_text(workdir.report, page(title, sections))
    return workdir.report


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page in the report's dress; nothing is fetched."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE.read_text()}</style>"
        f"</head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _opening(results: dict[str, Any], config: dict[str, Any]) -> str:
    teachers, student = len(results["teachers"]), results["student"]
    headers = len(student["header_accuracy"] or [None])
    has_generator = results["method"] != "kd"
    accuracy = results["aggregator"]["accuracy"]
    ensemble = results["teacher_ensemble"]
    images = (
        "without a single one of their images" if has_generator else "from their images"
    )
    question = f"Can one small network learn what {_spelled(teachers)} know, {images}?"
    facts = []
    if accuracy is not None:
        facts.append(
            f"The student is right on <b>{tables.share(accuracy)}</b> of the test "
            f"images, its teachers together on {tables.share(ensemble['accuracy'])}."
        )
    elif student["agreement"] is not None:
        facts.append(
            f"No real image was there to measure on. On invented ones the student "
            f"agrees with its teachers on <b>{tables.share(student['agreement'])}</b>."
        )
    if student["parameters"] and ensemble["parameters"]:
        factor = ensemble["parameters"] / student["parameters"]
        facts.append(
            f"It has {student['parameters']:,} parameters, they have "
            f"{ensemble['parameters']:,}: {factor:.1f} times as many."
        )
    aggregator = results["aggregator"]
    if aggregator.get("learned") and aggregator["real_samples"]:
        facts.append(
            f"How much each header counts was learned from "
            f"{aggregator['real_samples']} labelled real images, all else from "
            f"invented ones."
        )
    return (
        f"<header><p class=kicker>{html.escape(results['dataset'])} · "
        f"{html.escape(results['method'])} · seed {results['seed']}</p>"
        f"<h1>{question}</h1><p class=lead>{' '.join(facts)}</p></header>"
        f"<figure>{idea(teachers or 1, headers, has_generator)}</figure>"
    )


def _spelled(teachers: int) -> str:
    words = ("its teachers", "one teacher", "two teachers", "three teachers")
    return words[teachers] if teachers < len(words) else f"{teachers} teachers"


def _costs_note(results: dict[str, Any]) -> str:
    cost = tables.total(results.get("teacher_costs") or [], "latency_ms")
    by_name = {entry["format"]: entry for entry in results["exports"]}
    parts = []
    if results["aggregator"]["accuracy"] is None:
        parts.append("Accuracies were not measured: the run had no labelled images.")
    if cost and "tflite_int8" in by_name:
        factor = cost / by_name["tflite_int8"]["latency_ms"]
        parts.append(
            f"On one thread of the machine that exported it, the int8 student answers "
            f"{factor:.1f} times as fast as the teachers together."
        )
    if cost:
        parts.append(
            "Bytes and latency are those of TFLite files, float32 unless said."
        )
    return " ".join(parts)


def section(title: str, note: str, content: str) -> str:
    """A headed part of the page; empty without content."""
    if not content:
        return ""
    note = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{note}{content}</section>"


def _history(file: pathlib.Path) -> dict[str, list[float | None]]:
    """Column -> a value per epoch."""
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        name: [float(row[name]) if row[name] else None for row in rows]
        for name in (rows[0] if rows else ())
    }


def _curves(history: dict[str, list[float | None]]) -> str:
    found = []
    shares = {
        shown: history[name]
        for name, shown in _SHARES.items()
        if any(value is not None for value in history.get(name, ()))
    }
    if shares:
        label = "Accuracy; agreement with the teachers on invented images"
        found.append(chart(charts.curves(shares, label, percent=True), label))
    for player, title in (("student", "Student"), ("generator", "Generator")):
        losses = {
            name.removeprefix(f"{player}_"): values
            for name, values in history.items()
            if name.startswith(f"{player}_")
        }
        if losses:
            positive = all(v is None or v > 0 for x in losses.values() for v in x)
            label = f"{title}: loss terms, unweighted"
            svg = charts.curves(losses, label, logarithmic=positive)
            found.append(chart(svg, label))
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def chart(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _pictures(folder: pathlib.Path) -> str:
    files = sorted(folder.glob("epoch_*.png")) if folder.is_dir() else []
    last = len(files) - 1
    chosen = sorted({round(last * i / (_PICTURES - 1)) for i in range(_PICTURES)})
    figures = [
        f'<figure><img alt="Images invented in {name}" width={_PICTURE_PIXELS} '
        f'height={_PICTURE_PIXELS} src="data:image/png;base64,{_small_png(file)}">'
        f"<figcaption>{name}</figcaption></figure>"
        for file in (files[index] for index in chosen if files)
        for name in [f"epoch {int(file.stem.split('_')[1])}"]
    ]
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _small_png(file: pathlib.Path) -> str:
    with Image.open(file) as picture:
        size = (2 * _PICTURE_PIXELS, 2 * _PICTURE_PIXELS)  # for sharp screens
        picture.thumbnail(size, Image.Resampling.BILINEAR)
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _confusion_note(seen: dict[str, Any]) -> str:
    if seen.get("confusion_rows") != "teachers":
        return ""
    return (
        "Without labels, the teachers' answers to invented images stand for the truth."
    )


def _answers(seen: dict[str, Any]) -> str:
    if not seen:
        return ""
    names = seen["classes"]
    truth = "label" if seen["confusion_rows"] == "labels" else "teachers"
    label = f"Confusion matrix: {truth} against student"
    found = [
        chart(
            charts.matrix(
                seen["confusion"], names, names, label, axes_names=(truth, "student")
            ),
            label,
        )
    ]
    invented = seen["invented_classes"]
    if invented:
        label = "Classes of 512 invented images; dashed: all alike"
        expected = sum(invented) / len(invented)
        found.append(chart(charts.bars(invented, names, label, expected), label))
    weights, by_class = seen["header_weights"], seen["header_weights_by_class"]
    if len(weights) > 1:
        columns = [f"header {index}" for index in range(len(weights))]
        label = "Header weights: mean over the images of each class"
        empty = [None] * len(weights)
        rows = [row or empty for row in by_class]
        svg = charts.matrix(
            rows, names, columns, label,
            axes_names=("class", ""), form="{:.2f}", square=False,
        )  # fmt: skip
        found.append(chart(svg, label))
    return f'<div class="charts">{"".join(found)}</div>'


def _command(config: dict[str, Any], results: dict[str, Any]) -> str:
    if not config:
        return ""
    usual = RunConfig().option_dict()
    flags = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in config.items()
        if name != "action" and value is not None and value != usual.get(name)
    ]
    command = " \\\n    ".join(["python main.py", *flags])
    versions = "".join(
        f"<li>{html.escape(name)} {html.escape(version)}</li>"
        for name, version in results["versions"].items()
    )
    seconds = [
        (step.replace("_", " "), f"{value:.0f} s")
        for step, value in results["seconds"].items()
        if value is not None
    ]
    return (
        f"<pre><code>{html.escape(command)}</code></pre>"
        f"<ul class=inline>{versions}</ul>"
        + tables.table(("step", "time"), seconds, "Seconds of each step")
    )
