"""Decoding on a Dask cluster: blocks of frames go to its workers, the rest runs here.

Workers read the recordings and write the frames themselves, so they must see both under the same paths (a network file
system) and have this package installed. A worker that dies is replaced by another: its blocks are written again, whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from diffusion_policy.commands import install_extra
from diffusion_policy.convert.settings import ConversionError

# Time limits for a scheduler to answer, and for its workers to appear.
_CONNECT_SECONDS = 20


@contextmanager
def cluster(address: str | None) -> Iterator[Executor | None]:
    """Yields an executor on the cluster whose scheduler is at `address` ("tcp://host:port"); None without an address.

    Raises:
        ConversionError: Dask is not installed, or no scheduler answers, or it has no worker.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ConversionError(f"a scheduler needs Dask: {install_extra('cluster')}") from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{address}: no Dask scheduler answers ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError as error:
            raise ConversionError(f"{address}: the scheduler has no worker; start dask worker {address}") from error
        # A block may be written twice with the same content, but must not be taken from a cache.
        with client.get_executor(pure=False, retries=3) as executor:
            yield executor
