"""Small programs around a run: commands of `cdfkd-tf`, or `python -m cdfkd_tf.tools.X`.

`COMMANDS` is their table; each module has `main(arguments) -> exit code`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from cdfkd_tf.errors import RequestError, one_line

# Name on the command line -> module of this folder, what it does.
COMMANDS = {
    "make-example": ("make_example", "Three small teachers and a folder of images."),
    "import": ("import_torch", "ONNX and PyTorch files into a teacher's."),
    "classify": ("classify", "Classes of pictures, by an exported file."),
    "prepare-data": ("prepare_data", "Fetches and prepares a data set."),
}


class Parser(argparse.ArgumentParser):
    """A tool's flags; a wrong one is refused in one line, as everywhere.

    Args:
        command: a key of `COMMANDS`.
        description: the module's docstring, or its first line.
    """

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"cdfkd-tf {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> None:
        """Raises RequestError."""
        raise RequestError(f"{message[:1].upper()}{message[1:]}. See {self.prog} -h.")

    def run(
        self,
        work: Callable[[argparse.Namespace], None],
        arguments: Sequence[str] | None,
    ) -> int:
        """Does `work` with the flags; 0, or 2 after one `error:` line.

        Args:
            work: is given the flags' values.
            arguments: without the program's name; None: this process's.
        """
        try:
            work(self.parse_args(arguments))
        except RequestError as error:
            print(f"error: {one_line(error, 2000)}", file=sys.stderr)
            return error.exit_code
        return 0
