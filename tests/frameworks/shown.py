"""What tests say that they show: `@pytest.mark.shows(operation, framework, *ways)`, and the table made of it.

docs/frameworks.md holds the table; tests/unit/test_frameworks_page.py compares it with the marks. After a change of
marks: `python tests/frameworks/shown.py` writes the table anew.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FOLDERS = ("frameworks", "ranks", "gpu")  # where marks are looked for

# The columns: each framework's ways to be used. Keras runs on one of three backends, by fit(), compiled as it does.
WAYS = {
    "numpy": ("eager",),
    "cupy": ("eager",),
    "torch": ("eager", "compiled"),
    "tensorflow": ("eager", "compiled"),  # compiled: inside tf.function
    "jax": ("eager", "compiled"),  # compiled: inside jit
    "keras": ("tensorflow", "jax", "torch"),
}

# The rows. A mark that names another one is an error: put it here, in the part where a reader looks for it.
OPERATIONS = {
    "Collectives": (
        "allreduce",
        "grouped_allreduce",
        "allgather",
        "grouped_allgather",
        "broadcast",
        "alltoall",
        "reducescatter",
        "grouped_reducescatter",
        "sparse_allreduce",  # IndexedSlices, sparse tensors
        "barrier",
        "join",
        "handles",  # *_async, poll, synchronize
        "in place",
        "out=",
        "process sets",
        "every dtype",
        "bfloat16",
        "no elements",
        "mismatch: an error on every rank",
        "pytrees",
        "vmap",
    ),
    "Gradients of collectives": (
        "gradient of allreduce",
        "gradient of grouped_allreduce",
        "gradient of allgather",
        "gradient of broadcast",
        "gradient of alltoall",
        "gradient of reducescatter",
    ),
    "Training": (
        "DistributedOptimizer",  # of JAX: distributed(optimizer), for optax
        "DistributedGradientTape",
        "equals one process on the joined batch",
        "compression",
        "backward_passes_per_step",
        "sparse gradients",
        "SyncBatchNormalization",
        "overflow on one rank: all skip",
        "broadcast of the initial state",
        "broadcast_object",
        "allgather_object",
        "callbacks",
        "load_model",
        "sharded optimizer",
        "elastic",
        "map_reduce",
    ),
}
ROWS = tuple(row for rows in OPERATIONS.values() for row in rows)


@dataclass(frozen=True, order=True)
class Cell:
    operation: str
    framework: str
    way: str


def cells(operations: str | list[str] | tuple[str, ...], framework: str, *ways: str) -> list[Cell]:
    """The cells of the table that `shows(operations, framework, *ways)` fills; ValueError if there is no such cell."""
    names = [operations] if isinstance(operations, str) else list(operations)
    if unknown := [name for name in names if name not in ROWS]:
        raise ValueError(
            f"shows: no such operation: {', '.join(unknown)} (OPERATIONS of {Path(__file__).name})"
        )
    if framework not in WAYS:
        raise ValueError(f"shows: no such framework: {framework} (there are: {', '.join(WAYS)})")
    if not names or not ways or (unknown := [way for way in ways if way not in WAYS[framework]]):
        raise ValueError(
            f"shows: {framework} is used in these ways: {', '.join(WAYS[framework])}; the mark says {', '.join(ways)}"
        )
    return [Cell(name, framework, way) for name in names for way in ways]


def shown() -> dict[Cell, list[str]]:
    """The tests that show each cell, as `file:line`. Read from the sources: most frameworks are not installed here."""
    found: dict[Cell, list[str]] = {}
    for folder in FOLDERS:
        for file in sorted((TESTS / folder).rglob("*.py")):
            for line, arguments in marks(file):
                place = f"{file.relative_to(TESTS.parent)}:{line}"
                try:
                    filled = cells(*arguments)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{place}: {error}") from None
                for cell in filled:
                    found.setdefault(cell, []).append(place)
    return found


def marks(file: Path) -> Iterator[tuple[int, list]]:
    """The line and the arguments of each `pytest.mark.shows(…)` in the file."""
    tree = ast.parse(file.read_text(), str(file))
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.shows":
            try:
                yield node.lineno, arguments(node, constants)
            except ValueError:
                message = "shows: its arguments are read, not run: literals, or names of the file that stand for some"
                raise ValueError(f"{file}:{node.lineno}: {message}") from None


def arguments(call: ast.Call, constants: dict[str, ast.expr]) -> list:
    """ValueError for what only running it would tell."""
    values = []
    for argument in call.args:
        starred = isinstance(argument, ast.Starred)
        node = argument.value if starred else argument
        value = ast.literal_eval(constants.get(node.id, node) if isinstance(node, ast.Name) else node)
        values += value if starred else [value]
    return values


# ---- The table -------------------------------------------------------------------------------------------------------

PAGE = TESTS.parent / "docs" / "frameworks.md"
BEGIN, END = "<!-- written by tests/frameworks/shown.py -->", "<!-- end -->"
HEADINGS = {
    ("numpy", "eager"): "NumPy",
    ("cupy", "eager"): "CuPy",
    ("torch", "eager"): "PyTorch",
    ("torch", "compiled"): "compiled",
    ("tensorflow", "eager"): "TensorFlow",
    ("tensorflow", "compiled"): "`tf.function`",
    ("jax", "eager"): "JAX",
    ("jax", "compiled"): "`jit`",
    ("keras", "tensorflow"): "Keras, TensorFlow",
    ("keras", "jax"): "Keras, JAX",
    ("keras", "torch"): "Keras, PyTorch",
}
COLUMNS = [(framework, way) for framework, ways in WAYS.items() for way in ways]


def table(filled: set[Cell]) -> str:
    """The tables of the page, one for each part of OPERATIONS."""
    lines = []
    for part, rows in OPERATIONS.items():
        lines += ["", f"| {part} | {' | '.join(HEADINGS[column] for column in COLUMNS)} |"]
        lines.append("|---" * (1 + len(COLUMNS)) + "|")
        for row in rows:
            said = ["yes" if Cell(row, *column) in filled else "–" for column in COLUMNS]
            lines.append(f"| {row} | {' | '.join(said)} |")
    return "\n".join([*lines, ""])


def read(text: str) -> set[Cell]:
    """The cells in which the page says "yes"; ValueError for a line that is not of its tables."""
    names = {heading: column for column, heading in HEADINGS.items()}
    yes, columns = set(), []
    for line in text.partition(BEGIN)[2].partition(END)[0].strip().splitlines():
        first, *others = (word.strip() for word in line.strip("| ").split("|"))
        if first in OPERATIONS:
            columns = [names[heading] for heading in others]
        elif first in ROWS and len(others) == len(columns) and set(others) <= {"yes", "–"}:
            said = zip(others, columns, strict=True)
            yes |= {Cell(first, *column) for word, column in said if word == "yes"}
        elif line and set(line) != {"|", "-"}:
            raise ValueError(f"{PAGE.name}: not a row of the table: {line}")
    return yes


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(set(shown()))}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
