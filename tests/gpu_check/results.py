"""What a part finds: each result is a line of a file, written at once, so that what came before a crash is kept."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass
class Result:
    name: str
    what: str  # what was compared with what, or measured how
    state: str
    why: str = ""  # it failed, or was skipped
    figures: dict[str, tuple[float, str]] = field(default_factory=dict)  # name: value, unit
    seconds: float = 0.0


class Skip(Exception):
    """What is asked for does not exist here; the text says what."""


class Results:
    """The file that a part writes. `quick`: it is to be short."""

    def __init__(self, file: Path, quick: bool, limit: float) -> None:
        self._file, self.quick, self._end = file, quick, time.monotonic() + limit

    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def add(self, result: Result) -> None:
        self._write({"result": asdict(result)})

    def fact(self, name: str, value: object) -> None:
        self._write({"fact": [name, value]})

    def _write(self, line: dict[str, object]) -> None:
        with self._file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def check(self, name: str, what: str) -> Iterator[Result]:
        """Inside is one result: what is raised there is a failure, and the next one goes on."""
        result, began = Result(name, what, OK), time.monotonic()
        try:
            yield result
        except Skip as skip:
            result.state, result.why = SKIPPED, str(skip)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as failure:  # pytest.fail raises what is no Exception
            result.state, result.why = FAILED, f"{type(failure).__name__}: {failure}"
        result.seconds = round(time.monotonic() - began, 3)
        self.add(result)


def read(file: Path) -> tuple[list[Result], dict[str, object]]:
    """(results, facts) of a part that has ended, however it did: its last line may be half of one."""
    results, facts = [], {}
    for text in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if "fact" in line:
                facts[line["fact"][0]] = line["fact"][1]
            else:
                figures = {k: (v[0], v[1]) for k, v in line["result"].pop("figures").items()}
                results.append(Result(**line["result"], figures=figures))
    return results, facts
