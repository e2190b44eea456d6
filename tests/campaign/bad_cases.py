"""What is a case of the bad-input campaign?"""

import dataclasses
import pathlib
from collections.abc import Callable


class Place:
    """Where a case happens: `given` holds its input, `out` may be written, everything else may not.

    Attributes:
      shared: finished runs and data sets by name, which no case may change.
    """

    def __init__(self, root: pathlib.Path, shared: dict[str, pathlib.Path]) -> None:
        self.root, self.shared = root, shared
        self.given, self.out, self.log = root / "given", root / "out", root / "log"
        self.cwd, self.tmp, self.home = root / "cwd", root / "tmp", root / "home"
        for folder in (self.given, self.cwd, self.tmp, self.home):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        self.before: dict[str, str] = {}

    def output(self) -> str:
        """What the command wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command on bad input.

    Attributes:
      name: what is wrong.
      module: run as `python -m MODULE`.
      build: writes the input and gives the arguments.
      refused: whether the command must end with status 2 and one sentence, else with status 0; None: one of the two.
      words: that the sentence (or the output) must have.
      check: what else must hold of a command that finishes.
      begun: whether a refused command may have written to `out` (a run folder that exists already).
      unprivileged: whether it runs as the user nobody.
      needs: key of `Place.shared` without which the case is left out.
    """

    name: str
    module: str
    build: Callable[[Place], list[str]]
    refused: bool | None = True
    words: tuple[str, ...] = ()
    check: Callable[[Place], None] | None = None
    begun: bool = False
    unprivileged: bool = False
    needs: str = ""
