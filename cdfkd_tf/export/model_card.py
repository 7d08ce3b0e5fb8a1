"""The model card of exported files: `README.md` beside them, as model hubs show it."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cdfkd_tf.report import tables
from cdfkd_tf.report.tables import Table, written
from cdfkd_tf.workdir import write_text

_OURS = "library_name: cdfkd_tf"
_FRONT = f"""\
---
{_OURS}
pipeline_tag: image-classification
license: other
license_name: as-the-teachers
tags: [knowledge-distillation, {{tags}}tflite]
metrics: [accuracy]
---
"""


def write_model_card(
    directory: pathlib.Path, description: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Writes `directory/README.md`; one that somebody else wrote stays.

    Args:
        directory: of the exported files.
        description: from `describe`.
        results: of results.json, with the files that are there.
    """
    path = directory / "README.md"
    if path.exists() and _OURS not in path.read_text("utf-8", "replace"):
        print(f"{path} is somebody else's: no model card is written.")
        return
    used = results["aggregator"]["labelled_samples"]
    free = not used and "real" not in str(results.get("images")).split("+")
    front = _FRONT.format(tags="data-free, " * free)
    write_text(path, "\n".join([front, *_sections(description, results), ""]))


def _sections(about: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    image, classes = about["input"], about["classes"]
    student, aggregator = results["student"], results["aggregator"]
    size = f"{image['height']} x {image['width']}, {image['channel_order']}"
    backbone = _plain(pathlib.Path(about["student"]).name)
    yield f"# A student of {_count(results)}\n"
    yield (
        f"One image ({size}) to probabilities of {len(classes)} classes: "
        f"{_plain(', '.join(map(str, classes[:20])))}"
        f"{', ...' if len(classes) > 20 else ''}. Made with {about['made_by']} "
        f"{about['version']}, method {about['method']}, backbone {backbone}, seed "
        f"{results['seed']}.\n"
    )
    used = aggregator["labelled_samples"]
    images = results.get("learned_from", "generated images")
    yield (
        f"## Data\n\nLearned from {images} and the teachers' answers; {used or 'no'} "
        "labelled real images weigh the headers. What the teachers were trained on, "
        "their makers know.\n"
    )
    yield "## Accuracy\n"
    if aggregator["accuracy"] is None:
        agreement = written(student["agreement"])
        yield (
            "Not measured on real images: there were none. The student agrees with its "
            f"teachers on {agreement} of generated images, which is no accuracy.\n"
        )
    else:
        yield f"Share of right test images (--dataset={results['dataset']}).\n"
    teachers = [
        (_plain(pathlib.Path(str(t.get("file", ""))).name), t)
        for t in results["teachers"]
    ]
    rows = [
        *((f"teacher {name}", entry) for name, entry in teachers),
        ("teachers together", results["teacher_ensemble"]),
        ("student", {**student, "accuracy": aggregator["accuracy"]}),
    ]
    head = ("", "accuracy", "parameters")
    yield _markdown(
        head,
        [
            (name, written(row["accuracy"]), written(row["parameters"], tables.COUNT))
            for name, row in rows
        ],
    )
    yield "\n## Files\n"
    files: Table = tables.exports(results)
    yield _markdown(files.head, files.rows)
    yield "\n## Teachers\n"
    yield _markdown(("", "file"), [(n, t.get("fingerprint")) for n, t in teachers])
    yield (
        "\n## Limits\n\nIt knows these classes alone, and answers with one of them for "
        "any picture. It repeats its teachers' errors and biases. Files were compared "
        "with Keras on the machine that wrote them, not on a device.\n"
    )
    yield f"## Licence\n\n{about['licence']}"


def _count(results: Mapping[str, Any]) -> str:
    number = len(results["teachers"])
    return f"{number or 'its'} teacher{'s' * (number != 1)}"


def _markdown(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text that neither ends a table's cell nor begins a tag."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
