"""A table of names and the builders behind them."""

from collections.abc import Callable
from typing import Any

from cdfkd_tf.errors import RequestError


class Registry:
    """Maps a name that users type to the function that builds the thing.

    Args:
        kind: what the entries are, in the singular; used in messages only.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator that files a builder under `name`.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._builders:
            raise ValueError(f"A {self.kind} named {name!r} is registered already.")

        def add(builder: Callable) -> Callable:
            self._builders[name] = builder
            return builder

        return add

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The builder called `name`.

        Raises:
            RequestError: if there is none; the message lists the known names.
        """
        if name not in self._builders:
            raise RequestError(
                f"Unknown {self.kind} {name!r}. Known: {', '.join(self.names())}."
            )
        return self._builders[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._builders)
