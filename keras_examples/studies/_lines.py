"""A file of records, one JSON object a line, that survives an interruption."""

import json
import pathlib
from typing import IO


class Lines:
    """Records in a file; a line is written whole or not at all."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def read(self) -> list[dict]:
        """All records; none where there is no file. A last line that was cut off is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def add(self, record: dict) -> None:
        """Writes a record down.

        Args:
            record: of JSON's types.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:  # one call of the system: processes may share the file
            self._drop_what_was_cut_off(file)
            file.write((json.dumps(record) + "\n").encode())

    def _drop_what_was_cut_off(self, file: IO[bytes]) -> None:
        text = self._path.read_bytes()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
