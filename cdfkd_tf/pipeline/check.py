"""What can be refused is refused here, before the first step that takes long."""

import hashlib
import warnings
from collections.abc import Sequence

from cdfkd_tf.data.builders.image_folder import ImageFolder
from cdfkd_tf.data.image_files import unreadable
from cdfkd_tf.data.transfer_set import (
    needs_pictures,
    read_pictures,
    read_unlabelled,
)
from cdfkd_tf.distillation import build, memory
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.export.run import check_formats
from cdfkd_tf.networks.aggregators import (
    aggregator_kind,
    build_aggregator,
    build_predictor,
)
from cdfkd_tf.pipeline.steps import Run
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.teacher import Teacher
from cdfkd_tf.workdir import read_json, write_json

_NAMED = 10  # damaged pictures, at most
_ANNOUNCED = 2_000  # pictures that take a while to decode
_seen: set[str] = set()  # digests of pictures that this process has decoded


def check(run: Run, todo: Sequence[str]) -> None:
    """Tries on untrained networks what the steps to do will need.

    Decodes each picture of an own folder. Before a step that takes long: asks each
    teacher once, builds the student and the generator, writes each format that is to be
    exported.

    Args:
        run: with whose objects the steps will work.
        todo: steps.

    Raises:
        RequestError: what cannot be.
    """
    stamp, decoded = run.workdir.path / "pictures.json", None
    if run.spec.folder and ("train_teachers" in todo or run.reads_images):
        # First: teachers are tried on some.
        decoded = _check_pictures(run.spec.folder, read_json(stamp).get("decoded"))
    if "train_teachers" in todo or "distill" in todo:
        _check_networks(run, todo)
    if decoded:
        write_json(stamp, {"decoded": decoded})


def _check_networks(run: Run, todo: Sequence[str]) -> None:
    config, spec, trains = run.config, run.spec, "train_teachers" in todo
    if config.teachers or not trains:
        ensemble = run.teachers
        if config.teachers and config.action != "search":  # else for each trial
            for teacher in ensemble.teachers:
                print(f"Teacher {teacher}", flush=True)
    else:
        untrained = Teacher(run.build_teacher(0))
        ensemble = TeacherEnsemble([untrained] * config.num_teachers)
    if trains and needs_pictures(run.method.images):
        read_pictures(config.transfer_images)  # else it is the next thing that is done
    if "distill" not in todo:
        return
    if config.bn_images:
        read_unlabelled(config.bn_images, spec.image_shape)
    student = build.build_student(run.sized(ensemble), spec, len(ensemble))
    generator = None
    if run.method.has_generator:
        generator = build.build_generator(config, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistillationWarning)  # said when it starts
        build.available_method(config, ensemble, student)
    if "export" in todo:
        kind = aggregator_kind(config.aggregator, student, ensemble.rule)
        kind = "stacking" if kind == "best" else kind
        aggregator = build_aggregator(kind, student, ensemble.rule)
        predictor = build_predictor(student, aggregator, spec.mean, spec.std)
        check_formats(predictor, config.export_formats, config.int8_finetune_steps)
    kept = build.bank_size(config, spec, run.method)
    memory.check(memory.estimate(config, ensemble, student, generator, kept))


def _check_pictures(path: str, known: str | None) -> str:
    """Decodes each, once for each state of a folder; the digest of that state."""
    folder = ImageFolder(path)
    if folder.left_out:
        names, count = ", ".join(folder.left_out[:3]), len(folder.left_out)
        names += ", ..." if count > 3 else ""
        print(f"Left out of {folder.root}, as no images: {count} ({names})", flush=True)
    files, digest = folder.files(), hashlib.sha256()
    for file in files:
        form = file.stat() if file.exists() else None
        form = form and (form.st_size, form.st_mtime_ns)
        digest.update(f"{file}: {form}\n".encode(errors="surrogateescape"))
    state = digest.hexdigest()
    if state not in {*_seen, known}:
        if len(files) > _ANNOUNCED:
            print(f"Looking at {len(files)} pictures", flush=True)
        if damaged := unreadable(files):
            more = " ..." if len(damaged) > _NAMED else ""
            raise RequestError(
                f"{len(damaged)} of {len(files)} image files cannot be read: "
                f"{'; '.join(damaged[:_NAMED])}{more}. Replace or remove them."
            )
    _seen.add(state)
    return state
