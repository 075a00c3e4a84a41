"""A local S3 server (moto) on loopback, and the environment in which programs find it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock
from urllib.request import Request, urlopen

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """Runs while in use; yields the name of an existing bucket. Skips with a reason without the extra packages."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed (extra 'dev')")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra 'cloud')")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # Servers in one process share their content, so this one is emptied first.
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    with mock.patch.dict(os.environ, environment(address)):
        s3fs.S3FileSystem.clear_instance_cache()
        patient()
        s3fs.S3FileSystem().mkdir("robot")
        yield "robot"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def patient() -> None:
    """On a busy machine a connection to loopback may take longer than the 5 s that s3fs allows."""
    import s3fs

    s3fs.S3FileSystem.connect_timeout = s3fs.S3FileSystem.read_timeout = 120


def environment(endpoint: str, key: str = "somebody") -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
