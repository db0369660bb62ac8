"""A bucket on a server of the tests' own, to which Amazon's variables in the environment lead, as a user sets them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

BUCKET = "atelier"


@contextmanager
def bucket() -> Iterator[Any]:
    """Gives boto3's client of it; what this process and its children reach as s3://atelier meanwhile is this one."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "ours")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            with closing(boto3.client("s3")) as client:
                client.create_bucket(Bucket=BUCKET)
                yield client
    finally:
        server.stop()


def keys(client: Any, prefix: str) -> list[str]:
    """Return the names of what lies below a prefix."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [one["Key"] for one in found.get("Contents", [])]
