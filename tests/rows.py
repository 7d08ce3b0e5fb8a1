"""Tests that go through a table: every row that fails is reported, in one case."""

import functools
import inspect


def rows(names, table, ids=str):
    """`pytest.mark.parametrize` with one case for the whole table.

    Fixtures are made once. `tmp_path` is an own folder for each row; what a row
    patches is undone after it.

    Args:
        names: of the arguments, as `"a, b"`.
        table: a value, or a tuple of values, for each row.
        ids: a list of names of the rows, or a function of a row's value.
    """
    names = [name.strip() for name in names.split(",")]
    table = list(table)

    def decorate(test):
        parameters = inspect.signature(test).parameters
        others = [p for name, p in parameters.items() if name not in names]
        if "subtests" not in parameters:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            others.append(inspect.Parameter("subtests", kind))

        @functools.wraps(test)
        def through_the_table(subtests, **fixtures):
            nested = {"subtests": subtests} if "subtests" in parameters else {}
            for index, row in enumerate(table):
                label = ids[index] if isinstance(ids, list) else ids(row)
                values = dict(zip(names, row if len(names) > 1 else [row]))
                own = dict(fixtures)
                if "tmp_path" in own:
                    own["tmp_path"] = own["tmp_path"] / str(index)
                    own["tmp_path"].mkdir()
                with subtests.test(str(label)[:80], row=index):
                    if "monkeypatch" not in own:
                        test(**own, **nested, **values)
                        continue
                    with own.pop("monkeypatch").context() as patch:
                        own["monkeypatch"] = patch
                        test(**own, **nested, **values)

        through_the_table.__signature__ = inspect.Signature(others)
        return through_the_table

    return decorate
