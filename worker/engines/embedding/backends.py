"""Where a job's vectors are computed: MLX on this device or the other, or PyTorch, loaded when first asked for.

`auto` is what the worker loaded: MLX. PyTorch is for those who want its numbers, and costs the weights' memory again.
"""

import logging
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import mlx.core as mx
import msgspec

from protocol.errors import Code, JobError
from protocol.messages import EmbedJob
from worker.engines.embedding import torch_models
from worker.engines.embedding.encoder import Vectors
from worker.engines.embedding.queue import QueuedText

log = logging.getLogger("worker")

LOOK_S = 0.02
"""How long a piece of preparation waits for a model that is being loaded."""


class Backend(msgspec.Struct, frozen=True):
    """One backend on one device."""

    backend: str
    device: str
    model: torch_models.Model

    @property
    def key(self) -> tuple[str, str]:
        """What inputs that may share a pass have in common."""
        return self.backend, self.device

    def encode_texts(self, texts: list[QueuedText]) -> Vectors:
        """See `Embedder.encode`; not normalised."""
        if self.backend == "torch":
            return self.model.encode(texts, normalize=False)
        with mx.stream(mx.Device(mx.cpu if self.device == "cpu" else mx.gpu)):
            return self.model.encode(texts, normalize=False)


class Backends:
    """The backends that one model has. For the preprocessor's thread."""

    def __init__(self, model: torch_models.Model, folder: Path, *, device: str) -> None:
        """`device` is where MLX computes unless asked otherwise."""
        self.own = Backend("mlx", device, model)
        self._folder = folder
        self._twins: dict[str, Backend] = {}
        self._one_at_a_time = threading.Lock()

    def select_backend(self, job: EmbedJob) -> Generator[None, None, Backend]:
        """Return what `job` prefers; yields while that is loading. Raises `JobError` for what is not there."""
        for value, allowed, param in (
            (job.backend, (None, "auto", "mlx", "torch"), torch_models.BACKEND),
            (job.device, (None, "auto", "gpu", "cpu"), torch_models.DEVICE),
        ):
            if value not in allowed:
                raise JobError(Code.INVALID_REQUEST, f"'{param}' can't be {value!r} here.", param)
        device = None if job.device == "auto" else job.device
        if job.backend == "torch":
            return (yield from self._torch(device))
        if device in (None, self.own.device):
            return self.own
        if device == "gpu" and not mx.is_available(mx.Device(mx.gpu)):
            raise JobError(Code.INVALID_REQUEST, "MLX finds no GPU on this server.", torch_models.DEVICE)
        return msgspec.structs.replace(self.own, device=device)

    def _torch(self, asked: str | None) -> Generator[None, None, Backend]:
        torch_models.refuse_missing()
        # Its import alone takes seconds, in which other jobs go on being prepared.
        loading = _Loading(partial(self._load, asked))
        loading.start()
        while loading.is_alive():
            loading.join(LOOK_S)
            yield
        if loading.backend is None:
            raise loading.error
        return loading.backend

    def _load(self, asked: str | None) -> Backend:
        """Return PyTorch's backend, made unless it exists.

        Raises `JobError`, and whatever a broken installation raises.
        """
        with self._one_at_a_time:
            device = torch_models.pick_device(asked)
            if device not in self._twins:
                found = torch_models.twin(self.own.model, self._folder, device)
                self._twins[device] = Backend("torch", device, found)
                log.info("PyTorch has loaded the model, too (%s)", device)
            return self._twins[device]


class _Loading(threading.Thread):
    """Runs `load`; afterwards there is a `backend`, or an `error` to tell."""

    def __init__(self, load: Callable[[], Backend]) -> None:
        super().__init__(name="torch", daemon=True)
        self._load = load
        self.backend: Backend | None = None
        self.error = JobError(Code.INVALID_REQUEST, "PyTorch can't be used on this server.", torch_models.BACKEND)

    def run(self) -> None:
        try:
            self.backend = self._load()
        except JobError as error:
            self.error = error
        except Exception:
            log.exception("PyTorch can't be used")
