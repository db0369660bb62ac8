"""What `benchmarks.serving` compares with: LitServe, with its own batching of whole requests.

`python -m benchmarks.serving_litserve DIRECTORY PORT` serves the model version in DIRECTORY.
"""

import sys
from pathlib import Path
from typing import Any

import litserve

from benchmarks.serving_peers import CAP, Order, document, draw, load


class Api(litserve.LitAPI):  # type: ignore[misc] # litserve is untyped
    """One picture a request."""

    directory: Path

    def setup(self, device: str) -> None:  # noqa: ARG002 - litserve's signature
        """Load the model in the worker."""
        self.model = load(self.directory)

    def decode_request(self, request: Order) -> Order:
        """Return the order as it is."""
        return request

    def batch(self, inputs: list[Order]) -> list[Order]:
        """Return the orders as they are."""
        return inputs

    def predict(self, inputs: list[Order]) -> list[Any]:
        """Return a picture an order."""
        return draw(self.model, inputs)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the pictures as they are."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return the answer."""
        return document(output)


if __name__ == "__main__":
    folder, number = sys.argv[1:]
    api = Api(max_batch_size=CAP, batch_timeout=0.005, api_path="/v1/images/generations")
    api.directory = Path(folder)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=int(number), generate_client_file=False, log_level="warning")
