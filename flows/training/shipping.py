"""From the journal to the MLflow run, in a thread of its own: a slow or dead server stops nothing."""

import queue
import threading
from pathlib import Path
from typing import Any, Final

from infra.documents import read_json
from infra.storage import write_json

PATIENCE_S: Final = 20.0
"""How long the end of a training waits for a slow server; what is left then is sent by the next call."""
RETRY_S: Final = 2.0


class Shipper:
    """Sends metric lines and pictures to one MLflow run, each once; what was sent is noted in `sent.json`."""

    def __init__(self, tracking_uri: str, run_id: str, journal: Path, cache: Path) -> None:
        self.tracking_uri, self.run_id, self.journal, self.cache = (
            tracking_uri,
            run_id,
            journal,
            cache,
        )
        self.trouble = ""  # why the server did not take the last line, if it did not
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._closing = threading.Event()
        self._sent = self._noted()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def line(self, line: dict[str, Any]) -> None:
        """Queue one line of the journal."""
        self._lines.put(line)

    def close(self) -> int:
        """Wait, but not long, until all is sent; returns how many lines are left for the next call."""
        self._lines.put(None)
        self._thread.join(PATIENCE_S)
        self._closing.set()
        return self._lines.qsize()

    def _noted(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = read_json(self.journal / "sent.json")
        except FileNotFoundError:
            noted = {}
        if noted.get("run_id") == self.run_id:
            return noted
        return {"run_id": self.run_id, "metrics": -1, "picture": -1}

    def _work(self) -> None:
        from infra.registry.registry import Registry

        registry = Registry(self.tracking_uri, self.cache)
        while (line := self._lines.get()) is not None:
            if "note" in line:
                continue  # for the terminal
            kind = "metrics" if "metrics" in line else "picture"
            if line["step"] <= self._sent[kind]:
                continue
            while not self._send(registry, line):
                if self._closing.wait(RETRY_S):
                    return
            self._sent[kind] = line["step"]
            write_json(self.journal / "sent.json", self._sent)

    def _send(self, registry: Any, line: dict[str, Any]) -> bool:
        from infra.registry.mlflow_client import RegistryError

        try:
            if "metrics" in line:
                registry.log_metrics(self.run_id, line["metrics"], line["step"])
            else:
                registry.log_file(self.run_id, self.journal / line["picture"], "samples")
        except (RegistryError, OSError) as error:
            self.trouble = str(error).splitlines()[0]
            return False
        self.trouble = ""
        return True
