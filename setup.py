"""What pyproject.toml cannot say: the wheel's flagfiles and the index's page."""

import pathlib
import re

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copies `experiments/**/*.flags` into the package; there they have one place."""

    def run(self) -> None:
        """The package, then its flagfiles."""
        super().run()
        if self.editable_mode:  # found where they are
            return
        for pattern in ("*.flags", "*.space"):
            for file in (ROOT / "experiments").rglob(pattern):
                target = pathlib.Path(
                    self.build_lib, "cdfkd_tf", file.relative_to(ROOT)
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(file), str(target))


def page() -> str:
    """README.md as an index shows it: no link into the repository, no checkout."""
    text = (ROOT / "README.md").read_text("utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)  # pictures
    text = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    text = re.sub(r"--flagfile=experiments/(\S+)\.flags", r"--recipe=\1", text)
    return text.replace("python main.py", "cdfkd-tf")


setup(
    cmdclass={"build_py": BuildWithRecipes},
    long_description=page(),
    long_description_content_type="text/markdown",
)
