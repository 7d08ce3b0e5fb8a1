"""report.html: words and numbers of a run's page; its HTML is in page.html.j2."""

import base64
import io
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.report import charts, tables
from cdfkd_tf.report.charts import Chart
from cdfkd_tf.report.tables import Table, written
from cdfkd_tf.workdir import Workdir, read_history, read_json, read_results, write_text

# Columns of history.csv that are shares, and what the chart calls them.
_SHARES = {
    "val_accuracy": "accuracy",
    "agreement": "agreement, newest images",
    "agreement_earlier": "agreement, earlier images",
}
_PICTURES, _PICTURE_PIXELS = 6, 528  # twice their size on the page, for sharp screens


class Section(NamedTuple):
    """A headed part of a page; only `title` and `note`: it is left out.

    Attributes:
        title: its heading.
        note: a sentence or two under it.
        charts: side by side.
        pictures: caption -> `data:` address of a square picture; side by side.
        command: to copy into a shell.
        facts: short words in one line.
        table: at the end.
    """

    title: str
    note: str = ""
    charts: Sequence[Chart] = ()
    pictures: Mapping[str, str] = {}
    command: str = ""
    facts: Sequence[str] = ()
    table: Table | None = None


def render(title: str, sections: Sequence[Section], **opening: Any) -> str:
    """A whole HTML page that fetches nothing; all text in it is escaped.

    Args:
        title: of the browser's window.
        sections: in order.
        **opening: `kicker`, the small line above the heading; `question`, the
            heading; `lead`, the answer in a sentence or two, bold between asterisks;
            `drawing`, if there is to be one: the numbers of teachers and of headers,
            and which images there are, `real`, say; empty where a generator makes them.
    """
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    how = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, **how).get_template("page.html.j2")
    return template.render(title=title, sections=sections, **opening)


def shell_command(arguments: Sequence[str]) -> str:
    """`python main.py` with these arguments, quoted for a shell, several on lines."""
    between = " \\\n    " if len(arguments) > 1 else " "
    return between.join(["python main.py", *map(shlex.quote, arguments)])


def write_report(workdir: Workdir) -> pathlib.Path:
    """Writes `report.html` from what the run left in its folder.

    What was not measured, or not kept, is left out.

    Returns:
        The page's path.

    Raises:
        RequestError: if the folder holds no results, or a file of another form.
    """
    results = read_results(workdir.results)
    if not results:
        raise RequestError(
            f"{workdir.path} holds no results.json to report on. Run --action=pipeline "
            "first, or check --workdir."
        )
    observations = read_json(workdir.observations)
    teachers = len(results["teachers"])
    sources = str(results.get("images", "generated")).split("+")
    has_generator = "generated" in sources
    learned_from = results.get("learned_from", "generated images")
    headers = len(results["student"]["header_accuracy"] or [None])
    names = ("its teachers", "one teacher", "two teachers", "three teachers")
    who = names[teachers] if teachers < len(names) else f"{teachers} teachers"
    kind = "real" if "real" in sources else "unrelated"
    source = "from their" if kind == "real" else "without a single one of their"
    run = [results["dataset"], results["method"], f"seed {results['seed']}"]
    together = results["teacher_ensemble"]
    rule = together.get("rule")
    rule = rule and f"the rule {rule}: {together.get('rule_evidence')}"
    sections = [
        Section(
            "Teachers and student",
            _costs_note(results),
            table=tables.comparison(results) if results["teachers"] else None,
        ),
        Section(
            "How the teachers are asked",
            _guess_note(results, observations),
            table=tables.readings(results),
        ),
        Section(
            "What the teachers know",
            f"Their answers become one by {rule}." if rule else "",
            charts=_competence(results, observations),
        ),
        Section("How it learned", charts=_curves(read_history(workdir.history))),
        Section(
            "Generated images over time" if has_generator else "What it learned from",
            "What the generator drew, from the same noise, as training went on."
            if has_generator
            else f"Some of the {learned_from}.",
            pictures=_pictures(workdir.samples, _PICTURES if has_generator else 1),
        ),
        _answers(observations),
        Section(
            "Files for devices",
            "Each was loaded again and compared with the Keras model on the same "
            "images. Latency: median of one image, one thread, warm (the SavedModel "
            "as TensorFlow runs it)." + _micro_note(results["exports"]),
            table=tables.exports(results) if results["exports"] else None,
        ),
        _again(read_json(workdir.config), results),
    ]
    text = render(
        ", ".join(run),
        sections,
        kicker=" · ".join(run),
        question=f"Can one small network learn what {who} know, {source} images?",
        lead=" ".join([*_lead(results), *_origin(results, learned_from)]),
        drawing=(teachers or 1, headers, "" if has_generator else kind),
    )
    write_text(workdir.report, text)
    return workdir.report


def _lead(results: Mapping[str, Any]) -> Iterator[str]:
    student, ensemble = results["student"], results["teacher_ensemble"]
    aggregator = results["aggregator"]
    if aggregator["accuracy"] is not None:
        yield (
            f"The student is right on *{written(aggregator['accuracy'])}* of the test "
            f"images, its teachers together on {written(ensemble['accuracy'])}."
        )
    elif student["agreement"] is not None:
        yield (
            "No real image was there to measure on. On such as it learned from it "
            f"agrees with its teachers on *{written(student['agreement'])}*."
        )
    if student["parameters"] and ensemble["parameters"]:
        yield (
            f"It has {student['parameters']:,} parameters, they have "
            f"{ensemble['parameters']:,}: "
            f"{ensemble['parameters'] / student['parameters']:.1f} times as many."
        )
    if aggregator.get("learned") and aggregator["labelled_samples"]:
        yield (
            "How much each header counts was learned from "
            f"{aggregator['labelled_samples']} labelled real images, all else "
            "without labels."
        )


def _micro_note(exports: Sequence[Mapping[str, Any]]) -> str:
    """What a microcontroller's interpreter says; nothing where it was not asked."""
    lacks = {name for e in exports for name in e.get("micro_unsupported") or ()}
    if lacks:
        return f" tflite-micro does not run it: {', '.join(sorted(lacks))}."
    arena = any(e.get("arena_bytes") for e in exports)
    return " Arena: memory for tensors in tflite-micro, measured." * arena


def _origin(results: Mapping[str, Any], learned_from: str) -> Iterator[str]:
    """What the images were made of; what is known of the result without any labels."""
    quality = results.get("quality") or {}
    kinds = (quality.get("kinds") or {}).items()
    shares = [
        f"{share:.0%} {kind.replace('_', ' ')}"
        for kind, share in kinds
        if share >= 0.005
    ]
    mixed = f" ({', '.join(shares)})" if len(shares) > 1 else ""
    yield f"By method {results['method']} it learned from {learned_from}{mixed}."
    if counts := quality.get("class_counts"):
        yield (
            f"The teachers see {sum(map(bool, counts))} of {len(counts)} classes in "
            "them."
        )
    if quality.get("poor"):
        yield (
            "*The student is poor*: it hardly agrees with its teachers on new images "
            f"of the same kinds. Likely causes: {'; '.join(quality['causes'])}."
        )


def _costs_note(results: Mapping[str, Any]) -> str:
    cost = tables.total(results.get("teacher_costs") or [], "latency_ms")
    int8 = [e["latency_ms"] for e in results["exports"] if e["format"] == "tflite_int8"]
    note = ""
    if results["aggregator"]["accuracy"] is None:
        note += "Accuracies were not measured: the run had no labelled images. "
    if cost and int8:
        note += (
            "On one thread of the machine that exported it, the int8 student answers "
            f"{cost / int8[0]:.1f} times as fast as the teachers together. "
        )
    if cost:
        note += "Bytes and latency are those of TFLite files, float32 unless said."
    return note


def _guess_note(results: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    evidence = [str(t.get("input_evidence")) for t in results["teachers"]]
    if not any(text.startswith("guess") for text in evidence):
        return ""
    note = "What is marked is a guess; a wrong one spoils all that follows. "
    signs, counts = [], np.array(seen.get("invented_classes") or [])
    agreement = results["student"]["agreement"]
    if agreement is not None and agreement < 0.5:
        signs.append(f"the student agrees with its teachers on {written(agreement)}")
    if counts.sum():
        shares = counts[counts > 0] / counts.sum()
        in_use = np.exp(-np.sum(shares * np.log(shares)))  # by their entropy
        if in_use < len(counts) / 2:
            signs.append(f"the images show about {in_use:.1f} of {len(counts)} classes")
    if signs:
        note += f"Here {' and '.join(signs)}: a wrong guess may be the cause."
    return note


def _competence(results: Mapping[str, Any], seen: Mapping[str, Any]) -> list[Chart]:
    rows = results["teacher_ensemble"].get("competence") or [[]]
    if len(rows) < 2:
        return []
    classes = [str(label) for label in range(len(rows[0]))]
    names = [f"teacher {index}" for index in range(len(rows))]
    caption = "Competence: how well each teacher knows each class, 1 at its best"
    axes = ("", "class")
    classes = seen.get("classes") or classes
    return [charts.matrix(rows, names, classes, caption, axes, counts=False)]


def _curves(history: Mapping[str, Sequence[float | None]]) -> list[Chart]:
    known = {name: values for name, values in history.items() if {*values} - {None}}
    shares = {_SHARES[name]: known[name] for name in _SHARES if name in known}
    found = []
    if shares:
        caption = "Accuracy; agreement with the teachers on images it learned from"
        found.append(charts.curves(shares, caption, percent=True))
    for role in ("student", "generator"):
        names = [name for name in known if name.startswith(f"{role}_")]
        losses = {name.removeprefix(f"{role}_"): known[name] for name in names}
        if losses:
            positive = all(v is None or v > 0 for x in losses.values() for v in x)
            caption = f"{role.capitalize()}: loss terms, unweighted"
            found.append(charts.curves(losses, caption, logarithmic=positive))
    return found


def _pictures(folder: pathlib.Path, most: int) -> dict[str, str]:
    """Sample grids spread evenly over the epochs, the last always among them."""
    files, pictures = sorted(folder.glob("epoch_*.png")), {}
    places = {round(place) for place in np.linspace(len(files) - 1, 0, most)}
    for file in [files[place] for place in sorted(places) if files]:
        content = io.BytesIO()
        with Image.open(file) as picture:
            size = (_PICTURE_PIXELS, _PICTURE_PIXELS)
            picture.thumbnail(size, Image.Resampling.BILINEAR)
            picture.save(content, "PNG", optimize=True)
        text = base64.b64encode(content.getvalue()).decode()
        epoch = int(file.stem.removeprefix("epoch_"))
        pictures[f"epoch {epoch}"] = f"data:image/png;base64,{text}"
    return pictures


def _answers(seen: Mapping[str, Any]) -> Section:
    if not seen:
        return Section("What it answers")
    names, generated = seen["classes"], seen["invented_classes"]
    axes, note = ("label", "student"), ""
    if seen["confusion_rows"] == "teachers":
        axes = ("teachers", "student")
        note = "Without labels, the teachers' answers to such images as it learned "
        note += "from stand for the truth."
    caption, rows = f"Confusion matrix: {axes[0]} against student", seen["confusion"]
    found = [charts.matrix(rows, names, names, caption, axes, counts=True)]
    if generated:
        caption = f"Classes of {sum(generated)} such images; dashed: all alike"
        found.append(charts.bars(generated, names, caption))
    headers = [f"header {index}" for index in range(len(seen["header_weights"]))]
    if len(headers) > 1:
        caption = "Header weights: mean over the images of each class"
        axes, empty = ("class", ""), [None] * len(headers)
        rows = [row or empty for row in seen["header_weights_by_class"]]
        found.append(charts.matrix(rows, names, headers, caption, axes, counts=False))
    return Section("What it answers", note, charts=found)


def _again(config: Mapping[str, Any], results: Mapping[str, Any]) -> Section:
    if not config:
        return Section("Do it again")
    changed = RunConfig().with_values(config).changed_flags()
    flags = [flag for flag in changed if not flag.startswith("--action=")]
    seconds = [
        (step.replace("_", " "), f"{value:.0f} s")
        for step, value in results["seconds"].items()
        if value is not None
    ]
    return Section(
        "Do it again",
        command=shell_command(flags),
        facts=[f"{name} {version}" for name, version in results["versions"].items()],
        table=Table("Seconds of each step", ("step", "time"), seconds),
    )
