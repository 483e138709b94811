"""Workers that Ray starts and watches, on this machine or on those of a cluster."""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import station
from .driver import Gone, Lost
from .station import Look, Refused, Stamp, Station

CALL_SECONDS = 600.0  # that a worker may take to answer, its start included
ANSWER_SECONDS = 5.0  # that its head may take
INSTALL = "pip install ray"


def import_ray() -> Any:
    """Ray, or ImportError that says what to install."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            f"Ray is not installed, which starts and watches the farm's workers: {INSTALL}"
        ) from error


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; without an address one on this machine, as long as inside.

    Raises ConnectionError where there is no such cluster.
    """
    ray = import_ray()
    # What workers need of this program goes to them by value: no path has to be the same there.
    ray.cloudpickle.register_pickle_by_value(station)
    # A cluster of its own listens on this machine's own address only.
    given = {"address": address} if address else {"_node_ip_address": station.LOOPBACK}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **given)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"there is no Ray cluster at {address!r}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def answers(ray: Any) -> bool:
    """Whether the cluster's head is there; Ray itself waits a minute, then ends this process."""
    if not ray.is_initialized():  # it would start a cluster of its own to be asked
        return False
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class RayWorker:
    """A `Station` as an actor of Ray, with so many GPUs that no other worker has."""

    def __init__(self, ray: Any, name: str, command: Sequence[str], gpus: float) -> None:
        self.ray, self.name, self.command, self.gpus = ray, name, list(command), gpus
        self.actor: Any = None
        self.restart()

    def restart(self) -> None:
        if self.actor is not None:
            self._kill()
        options = {"num_gpus": self.gpus, "num_cpus": 1, "max_restarts": 0}
        with self._translate():
            self.actor = self.ray.remote(**options)(Station).remote(self.command)

    def start(self) -> str:
        return str(self._call("start"))

    def begin(
        self, prompt: Mapping[str, Any], stores: Sequence[str], stored: Mapping[str, bytes]
    ) -> None:
        self._call("begin", prompt, stores, stored)

    def look(self, known: Mapping[str, Stamp]) -> Look:
        seen: Look = self._call("look", known)
        return seen

    def stop(self) -> None:
        with contextlib.suppress(Lost, Gone, OSError):
            self._call("stop")
        self._kill()

    def _kill(self) -> None:
        # Its ComfyUI ends with it. What is gone already is no error.
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor)

    def _call(self, method: str, *given: Any) -> Any:
        with self._translate():
            return self.ray.get(getattr(self.actor, method).remote(*given), timeout=CALL_SECONDS)

    @contextlib.contextmanager
    def _translate(self) -> Iterator[None]:
        """Ray's errors as the driver's; what the station itself raised comes through."""
        errors = self.ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if type(cause).__name__ == Refused.__name__:
                raise Refused(str(cause)) from None
            raise Lost(str(cause)) from None
        except errors.RaySystemError as error:
            raise Gone(str(error)) from None
        except (errors.RayError, TimeoutError) as error:
            if not answers(self.ray):
                raise Gone("its head does not answer") from None
            raise Lost(str(error).splitlines()[0]) from None
        except ConnectionError as error:
            raise Gone(str(error)) from None


def count_workers(ray: Any, asked: int, gpus: float) -> int:
    """How many workers: as many as asked for, or as the cluster's GPUs make.

    Raises ValueError where there is not enough for that.
    """
    there = float(ray.cluster_resources().get("GPU", 0))
    if asked <= 0 and not gpus:
        raise ValueError("workers is 0 (as many as GPUs make) and gpus is 0; give one of the two")
    possible = int(there // gpus) if gpus else sys.maxsize
    workers = asked if asked > 0 else possible
    if not 0 < workers <= possible:
        raise ValueError(
            f"workers is {workers} with {gpus:g} GPUs each; it must fit the cluster, which has "
            f"{there:g} GPUs; nearest: {possible}"
        )
    return workers
