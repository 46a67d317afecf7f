"""Record what Kafka Connect's and Debezium's own transforms make of records: run ``python record.py`` here.

Wants Java 17 and the jars of ``make jars``. Reads ``cases.py``, writes ``expected.jsonl``: the schemas, then a line for
each case, in which a schema is its place in the first line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
JARS = Path.home() / ".cache" / "headrace" / "jars"


def main() -> None:
    """Compile the oracle, run it, and keep what it says."""
    sys.path.insert(0, str(HERE))
    from cases import CASES, RECORDS

    path = ":".join(
        str(jar) for folder in ("connect-*", "debezium-postgres-*/*") for jar in JARS.glob(f"{folder}/*.jar")
    )
    given = {"records": RECORDS, "cases": [{"records": case.records, "properties": case.properties} for case in CASES]}
    with tempfile.TemporaryDirectory() as made:
        subprocess.run(["javac", "-cp", path, "-d", made, str(HERE / "Oracle.java")], check=True)
        run = ["java", "-Duser.timezone=UTC", "-cp", f"{made}:{path}", "Oracle"]
        said = subprocess.run(run, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True).stdout.decode()
    lines = [line for line in said.split("\n") if line.startswith("[")]
    assert len(lines) == len(CASES), said
    schemas: list[Any] = []
    lines = [json.dumps(_short(json.loads(line), schemas), ensure_ascii=False) for line in lines]
    (HERE / "expected.jsonl").write_text("\n".join([json.dumps(schemas), *lines]) + "\n")


def _short(found: Any, schemas: list[Any]) -> Any:
    """Return what was recorded, with schemas as their places in a list."""
    if isinstance(found, list):
        return [_short(item, schemas) for item in found]
    if isinstance(found, dict) and found.keys() == {"schema", "payload"} and isinstance(found["schema"], dict):
        if found["schema"] not in schemas:
            schemas.append(found["schema"])
        return {"schema": schemas.index(found["schema"]), "payload": found["payload"]}
    return {name: _short(item, schemas) for name, item in found.items()} if isinstance(found, dict) else found


if __name__ == "__main__":
    main()
