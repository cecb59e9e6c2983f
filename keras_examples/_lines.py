"""A file of records, one JSON object a line, that survives an interruption."""

import json
import pathlib


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
        cut = self._path.exists() and self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a") as file:
            file.write(("\n" if cut else "") + json.dumps(record) + "\n")
