"""Nothing in the package runs what a file says; SECURITY.md tells what is trusted."""

import ast
import io
import pathlib
import tarfile
import zipfile

import keras
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.saved_model_check import check_saved_model
from tests.rows import rows

ROOT = pathlib.Path(__file__).parent.parent
FILES = [*sorted((ROOT / "cdfkd_tf").rglob("*.py")), ROOT / "main.py"]
# Reads code from data, or starts other programs.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "subprocess", "pty", "commands", "code", "codeop", "runpy", "yaml",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {"system", "popen", "unpack_archive", "enable_unsafe_deserialization"}
METHODS |= {
    name for name in dir(__import__("os")) if name.startswith(("exec", "spawn"))
}
# What these calls must say: argument -> value.
SAFELY = {
    "load_model": ("safe_mode", True),
    "deserialize_keras_object": ("safe_mode", True),
    "np.load": ("allow_pickle", False),
}


def faults(source):
    """What in `source` could run what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield node.module
        elif isinstance(node, ast.Call):
            yield from faults_of_call(node)


def faults_of_call(node):
    name = ast.unparse(node.func)
    last = name.rsplit(".", 1)[-1]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in CALLS or last in METHODS or given.get("shell", "False") != "False":
        yield name
    for ending, (argument, value) in SAFELY.items():
        named = name == ending or name.endswith(f".{ending}")
        if named and given.get(argument) != str(value):
            yield f"{name} without {argument}={value}"
    if last.startswith("extract") and name != "dl_manager.extract":
        yield name  # TFDS leaves out members that point elsewhere, see below


def test_package_runs_no_code_from_files_and_no_programs():
    found = {str(file.relative_to(ROOT)): [*faults(file.read_text())] for file in FILES}
    found = {file: bad for file, bad in found.items() if bad}
    # Its unpickler imports nothing: tests/networks/test_pytorch_files.py.
    assert found == {"cdfkd_tf/networks/pytorch_files.py": ["pickle"]}


FAULTY = (
    "import pickle",
    "from subprocess import run",
    "eval('1')",
    "os.system('ls')",
    "os.execvp('ls', [])",
    "run('ls', shell=True)",
    "keras.saving.load_model(path)",
    "load_model(path, safe_mode=False)",
    "np.load(file)",
    "np.load(file, allow_pickle=True)",
    "keras.saving.deserialize_keras_object(entry)",
    "archive.extractall(folder)",
)


def test_faults_finds_each_kind():
    assert [len([*faults(source)]) for source in FAULTY] == [1] * len(FAULTY)


class Overwriting(tf.Module):
    """A classifier that writes a checkpoint wherever it likes."""

    def __init__(self, prefix):
        super().__init__()
        self.weight, self.prefix = tf.Variable(1.0), prefix

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
    def serve(self, images):
        self.inner()
        return tf.reduce_mean(images, (1, 2)) * tf.ones((1, 4))

    @tf.function
    def inner(self):
        tf.raw_ops.SaveV2(
            prefix=self.prefix,
            tensor_names=["a"],
            shape_and_slices=[""],
            tensors=[self.weight.value()],
        )


def test_check_saved_model_refuses_calls_of_what_only_saving_needs(tmp_path):
    """Every SavedModel holds SaveV2, for its saver; this one would call it itself."""
    module = Overwriting(str(tmp_path / "elsewhere"))
    folder = tmp_path / "saved"
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    with pytest.raises(RequestError, match="holds SaveV2, which could"):
        check_saved_model(folder)
    assert not list(tmp_path.glob("elsewhere*"))


def test_load_classifier_refuses_a_saved_model_inside_a_keras_file(tmp_path):
    from cdfkd_tf.networks.loading import load_classifier

    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    network.export(tmp_path / "saved", verbose=False)
    layer = keras.layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serve")
    image = keras.Input((4,))
    keras.Model(image, layer(image)).save(tmp_path / "a.keras")
    with pytest.raises(RequestError, match="Cannot read teacher"):
        load_classifier(tmp_path / "a.keras")


def hostile_tar(target):
    """A member that climbs out, an absolute one, and a link followed by a member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(target)
        archive.addfile(link)
        for name in (
            "good/a",
            "../../evil",
            f"{target}/evil",
            "link/evil",
            "b/../../evil",
        ):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    return buffer.getvalue()


def hostile_zip(target):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("good/a", "../../evil", f"{target}/evil", "b/../../evil"):
            archive.writestr(name, "x")
    return buffer.getvalue()


@rows("ending, content", [(".tar.gz", hostile_tar), (".zip", hostile_zip)])
def test_extract_cannot_write_outside_its_folder(tmp_path, ending, content):
    """As the data sets' builders unpack what was fetched."""
    target = tmp_path / "target"
    target.mkdir()
    archive = tmp_path / f"archive{ending}"
    archive.write_bytes(content(target))
    manager = tfds.download.DownloadManager(download_dir=tmp_path / "deep/downloads")
    folder = pathlib.Path(manager.extract(archive))
    assert (folder / "good/a").read_text() == "x"
    assert not any(target.iterdir())
    written = [path for path in tmp_path.rglob("evil") if folder not in path.parents]
    assert written == []
