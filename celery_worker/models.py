"""models.yaml: find a model, verify it by sha256, load it once per process, warm it up."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from celery_worker import cuda
from celery_worker.device_errors import is_out_of_memory
from celery_worker.devices import used_bytes
from celery_worker.workbench import Device
from jobs import log
from jobs.errors import ModelBroken

SHARE = 0.9  # of a device's memory may be taken by models; the rest is for what a call needs, and for the runtime
GUESS = 4  # times its file's size is what a model is thought to take until that is measured

logger = log.get(__name__)

FIELDS = frozenset({"title", "file", "sha256", "licence", "source", "labels", "package", "contract"})
CUDA_SAYS = re.compile(r"\b(CUDA|CUDNN|CUDNN_FE|CUBLAS|CUFFT|CURAND) failure \d")
REQUIRED = frozenset({"title", "file", "sha256", "licence", "source"})


class Models:
    """The models of one folder, on one device. Raises ModelBroken with a sentence that says what to mend."""

    def __init__(
        self,
        models_dir: str | Path,
        device: Device,
        loaded: Callable[[str, float], None] = lambda name, seconds: None,
        used: Callable[[], int] | None = None,
    ) -> None:
        """`used` tells how many bytes of the device's memory are taken now; by default the device is asked."""
        self.folder = Path(models_dir)
        self.device = device
        self.taken: dict[str, int] = {}  # bytes of memory by loaded model, as measured
        self._told = loaded  # gets a model's name and the seconds that it took to load
        self._used = used or (lambda: used_bytes(device))
        self._measured: dict[str, int] = {}  # also of those that had to go
        self._entries: Mapping[str, Mapping[str, Any]] | None = None
        self._verified: set[Path] = set()
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Every model that models.yaml names."""
        return tuple(self._read())

    @property
    def declared(self) -> Mapping[str, Mapping[str, Any]]:
        """What models.yaml says of each, by name. Its `contract` is for the pipeline that uses the model."""
        return self._read()

    def find(self, name: str) -> Path:
        """The path of a model's file, its sha256 verified."""
        entry = self._entry(name)
        folder = _folder_of(name, entry["package"]) if "package" in entry else self.folder
        return self._verify(name, folder / entry["file"], entry["sha256"])

    def labels(self, name: str) -> tuple[str, ...]:
        """The names of a model's classes, by class number; none for a model without labels."""
        labels = self._entry(name).get("labels")
        if labels is None:
            return ()
        return tuple(self._verify(name, self.folder / labels["file"], labels["sha256"]).read_text().splitlines())

    def load(self, name: str) -> Any:
        """An ONNX file as an `onnxruntime.InferenceSession`, loaded once; its `labels` are the names of its classes.

        Of any other kind of file (weights of our own, a tokenizer) the path. On a GPU those that were not used for
        longest make room for it.
        """
        with self._lock:
            if name in self._loaded:
                self._loaded[name] = self._loaded.pop(name)  # the one that was used last stands last
                return self._loaded[name]
            began = time.monotonic()
            if self._entry(name)["file"].endswith(".onnx"):
                self._make_room(name)
                with self._measuring(name):
                    self._loaded[name] = self._session_or_room(name)
            else:
                self._loaded[name] = self.find(name)
            self._told(name, time.monotonic() - began)
            return self._loaded[name]

    def warm_up(self, names: Iterable[str]) -> None:
        """Load models and run each once on zeros, so that the first part does not pay for it."""
        for name in names:
            import numpy as np  # a worker without models has none

            session = self.load(name)
            if isinstance(session, Path):
                continue
            zeros = {
                given.name: np.zeros([n if isinstance(n, int) else 1 for n in given.shape], _dtype(given.type))
                for given in session.get_inputs()
            }
            with self._measuring(name):
                session.run(None, zeros)

    def _make_room(self, name: str) -> None:
        """How many models fit is what was measured of each; of one that was never loaded, a guess by its file."""
        if self.device.kind == "cpu":
            return
        need = self._measured.get(name) or GUESS * self.find(name).stat().st_size
        most = int(self.device.memory_bytes * SHARE)
        for other in [loaded for loaded in self._loaded if loaded in self.taken]:
            if sum(self.taken.values()) + need <= most:
                return
            logger.info("model_unloaded", model=other, memory_bytes=self.taken[other], makes_room_for=name)
            del self._loaded[other], self.taken[other]

    def _session_or_room(self, name: str) -> Any:
        """What a model takes was a guess: if it is more than there is, the others go."""
        try:
            return self._session(name)
        except ModelBroken as error:
            others = [loaded for loaded in self._loaded if loaded in self.taken]
            if self.device.kind == "cpu" or not others or not is_out_of_memory(error):
                raise
            logger.warning("models_unloaded", models=others, makes_room_for=name)
        for other in others:
            del self._loaded[other], self.taken[other]
        return self._session(name)

    @contextmanager
    def _measuring(self, name: str) -> Iterator[None]:
        """What happens inside takes memory for this model."""
        before = self._used()
        yield
        self.taken[name] = self.taken.get(name, 0) + max(0, self._used() - before)
        self._measured[name] = self.taken[name]

    def _session(self, name: str) -> Any:
        # Imported late: a worker without models needs no runtime, and a GPU must be pinned before.
        import onnxruntime

        file, labels = self.find(name), self.labels(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.device.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device.kind == "cuda":
            # CUDA's libraries come as wheels: they are found in their packages, not by the loader's path.
            onnxruntime.preload_dlls()
            providers.insert(0, cuda.provider(self.device))
        try:
            # By itself it would load the model anew on the CPU, also in the middle of a call, and print why: the record
            # would name a GPU that did nothing, and nobody learnt that memory has ended or the device is lost.
            session = onnxruntime.InferenceSession(file, options, providers=providers, enable_fallback=0)
        except Exception as error:
            raise ModelBroken(f"The model {name} cannot be loaded: {_line(error)}", model=name) from error
        if self.device.kind == "cuda" and cuda.PROVIDER not in session.get_providers():
            # Libraries that are missing are no error to it either.
            why = cuda.trouble() or "ONNX Runtime does not say why"
            raise ModelBroken(f"The model {name} did not load on {self.device.name}: {why}.", model=name)
        session.labels = labels
        return session

    def _verify(self, name: str, path: Path, sha256: str) -> Path:
        """Once per file and process: reading 14 MB for every job would be waste."""
        if path not in self._verified:
            try:
                with path.open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise ModelBroken(f"The model {name} needs {path}, which cannot be read.", model=name) from error
            if found != sha256:
                raise ModelBroken(
                    f"{path} is not the file that models.yaml names for {name}: its sha256 is {found}, not {sha256}.",
                    model=name,
                )
            self._verified.add(path)
        return path

    def _entry(self, name: str) -> Mapping[str, Any]:
        entries = self._read()
        if name not in entries:
            raise ModelBroken(f"{self.folder / 'models.yaml'} names no model {name!r}.", model=name)
        return entries[name]

    def _read(self) -> Mapping[str, Mapping[str, Any]]:
        """models.yaml, checked as a whole when the first model is asked for."""
        if self._entries is None:
            file = self.folder / "models.yaml"
            try:
                entries = yaml.safe_load(file.read_text())
                for name, entry in entries.items():
                    _check(name, entry)
            except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
                raise ModelBroken(f"{file} cannot be used: {_line(error)}") from error
            self._entries = entries
        return self._entries


def _check(name: str, entry: Mapping[str, Any]) -> None:
    if wrong := REQUIRED - set(entry):
        raise ValueError(f"{name} lacks {', '.join(sorted(wrong))}")
    if extra := set(entry) - FIELDS:
        raise ValueError(f"{name} has unknown keys: {', '.join(sorted(extra))}")
    if entry.get("labels") is not None and set(entry["labels"]) != {"file", "sha256"}:
        raise ValueError(f"the labels of {name} need a file and its sha256")


def _folder_of(name: str, package: str) -> Path:
    """Where an installed package keeps its files; it is not imported, so what it drags in stays out."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelBroken(f"The model {name} comes with the package {package}, which is not installed.", model=name)
    return Path(found.submodule_search_locations[0])


def _dtype(kind: str) -> str:
    """ONNX's name of a type, `tensor(uint8)`, as NumPy's."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def _line(error: Exception) -> str:
    """The first line; of CUDA's the part behind a function's whole signature."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line[found.start() if (found := CUDA_SAYS.search(line)) else 0 :][:300]
