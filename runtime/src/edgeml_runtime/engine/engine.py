# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The models of a server: which are configured, which are loaded, and how a version takes the place of another."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from edgeml_runtime.config import Config, ModelConfig
from edgeml_runtime.errors import ConfigurationError, Failure, RequestError, StartError
from edgeml_runtime.metrics import Metrics

if TYPE_CHECKING:
    from edgeml_runtime.engine.served_model import ServedModel

READY = "READY"
LOADING = "LOADING"
UNAVAILABLE = "UNAVAILABLE"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A line of the repository index: state is READY, LOADING or UNAVAILABLE, with the reason of the last."""

    name: str
    version: str
    state: str
    reason: str


class Engine:
    """Loads the configured models and finds them for requests. Used on the event loop alone.

    ``ready`` is true from the moment that all models are loaded until the server stops.
    """

    def __init__(
        self, config: Config, metrics: Metrics, read_models: Callable[[], tuple[ModelConfig, ...]] | None = None
    ) -> None:
        """``read_models`` reads the configured models again, for loading later; without it they never change."""
        self._config = config
        self._metrics = metrics
        self._read_models = read_models or (lambda: config.models)
        self._configured: dict[str, list[ModelConfig]] = {}
        self._configure(config.models)
        #: By name and version; the version is empty for the one that is meant when none is named.
        self._loaded: dict[tuple[str, str], ServedModel] = {}
        self._reasons: dict[tuple[str, str], tuple[str, str]] = {}
        self._loading = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._retiring: set[asyncio.Task[None]] = set()
        self._on_change: list[Callable[[], None]] = []
        self.ready = False

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when other models may be configured than before."""
        self._on_change.append(callback)

    async def start(self) -> None:
        """Load all models, one after the other. Raises StartError."""
        async with self._loading:
            for name in list(self._configured):
                await self._replace(name, again=True, check=False)

    async def load(self, name: str) -> None:
        """Load what the configuration now says of a model, beside what serves, then switch to it.

        Requests under way finish on what they began with. Raises RequestError: not found when the
        configuration lacks the model, invalid when it cannot be loaded; what served goes on then.
        """
        async with self._loading:
            self._configure(self._current_models(), only=name)
            self._changed()
            if name not in self._configured:
                raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not in the configuration")
            try:
                await self._replace(name, again=True, check=True)
            except StartError as error:
                raise RequestError(Failure.INVALID, f"model '{name}' was not loaded: {error}") from None

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests under way finish. Raises RequestError (not found)."""
        async with self._loading:
            self._check_configured(name)
            for key in [key for key in self._loaded if key[0] == name]:
                self._take_out(key, "unloaded on request")

    async def reload(self) -> None:
        """Bring the loaded models to what the configuration now says; what cannot be loaded leaves the old serving.

        Raises RequestError (invalid) that names all that failed.
        """
        async with self._loading:
            self._configure(self._current_models())
            for key in [key for key in self._loaded if key[0] not in self._configured]:
                self._take_out(key, "")
            self._changed()
            failures = []
            for name in list(self._configured):
                try:
                    await self._replace(name, again=False, check=True)
                except StartError as error:
                    failures.append(str(error))
            if failures:
                raise RequestError(Failure.INVALID, "; ".join(failures))

    def index(self) -> list[ModelStatus]:
        """All configured models, and those that still serve though they no longer are."""
        lines = []
        listed = {(config.name, config.version) for configs in self._configured.values() for config in configs}
        for name, version in sorted(listed | {key for key in self._loaded if key[1]} | self._reasons.keys()):
            state, reason = self._reasons.get((name, version), (LOADING, "it is still being loaded"))
            state = READY if (name, version) in self._loaded else state
            lines.append(ModelStatus(name, version, state, reason))
        return lines

    def is_loaded(self, name: str, version: str) -> bool:
        """Whether a configured model is loaded. Raises RequestError (not found)."""
        if (name, version) in self._loaded:
            return True
        self._check_configured(name)
        versions = [config.version for config in self._configured[name]]
        if version and version not in versions:
            raise RequestError(
                Failure.NOT_FOUND, f"model '{name}' is served in version {', '.join(versions)}, not '{version}'"
            )
        return False

    def model(self, name: str, version: str) -> "ServedModel":
        """The model; an empty version means the first that is configured.

        Raises RequestError: not found, or unavailable while the model is not loaded.
        """
        model = self._loaded.get((name, version))
        if model is None:
            self.is_loaded(name, version)
            raise RequestError(Failure.UNAVAILABLE, f"model '{name}' is not loaded: {self._reason(name, version)}")
        return model

    def versions(self, name: str) -> list[str]:
        """Versions of a model that are loaded, the one that is meant when none is named first."""
        default = self._loaded.get((name, ""))
        first = [default.version] if default else []
        return first + [key[1] for key in self._loaded if key[0] == name and key[1] not in ("", *first)]

    # -- private ---------------------------------------------------------------------------------------------------

    def _configure(self, models: tuple[ModelConfig, ...], only: str | None = None) -> None:
        for name in list(self._configured) if only is None else [only]:
            self._configured.pop(name, None)
        for model in models:
            if only in (None, model.name):
                self._configured.setdefault(model.name, []).append(model)

    def _changed(self) -> None:
        for callback in self._on_change:
            callback()

    def _current_models(self) -> tuple[ModelConfig, ...]:
        try:
            return self._read_models()
        except ConfigurationError as error:
            raise RequestError(Failure.INVALID, f"the configuration cannot be read: {error}") from None

    def _check_configured(self, name: str) -> None:
        if name not in self._configured:
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not served here")

    def _reason(self, name: str, version: str) -> str:
        version = version or self._configured[name][0].version
        return self._reasons.get((name, version), (LOADING, "it is still being loaded"))[1]

    async def _replace(self, name: str, again: bool, check: bool) -> None:
        """Load all configured versions of a model, then let them take the place of the loaded ones. Raises StartError.

        ``again``: also those that are loaded as configured. ``check``: against all golden cases first.
        """
        configs = self._configured[name]
        fresh: list[ServedModel] = []
        try:
            for config in configs:
                current = self._loaded.get((name, config.version))
                if current is not None and not again and current.config == config:
                    fresh.append(current)
                else:
                    fresh.append(await self._load(config, check))
        except StartError:
            for model in fresh:
                if model not in self._loaded.values():
                    self._retire(model)
            raise
        old = {key: model for key, model in self._loaded.items() if key[0] == name}
        for key in old:
            del self._loaded[key]
        for model in fresh:
            self._loaded[name, model.version] = model
            self._reasons[name, model.version] = (READY, "")
        self._loaded[name, ""] = fresh[0]
        for model in {id(model): model for model in old.values() if model not in fresh}.values():
            if (name, model.version) not in self._loaded:
                self._reasons.pop((name, model.version), None)
            self._retire(model)

    async def _load(self, config: ModelConfig, check: bool) -> "ServedModel":
        key = (config.name, config.version)
        if key not in self._loaded:
            self._reasons[key] = (LOADING, "it is still being loaded")
        started = perf_counter()
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._loader, self._build, config, check)
        except StartError as error:
            self._reasons[key] = (UNAVAILABLE, str(error))
            logger.error("cannot load %s %s: %s", config.name, config.version, error)
            raise
        logger.info(
            "loaded %s %s (%s) in %.3f s, one run takes %.0f us",
            *(model.name, model.version, model.digest or "no digest"),
            *(perf_counter() - started, model.compute_seconds * 1e6),
        )
        return model

    def _build(self, config: ModelConfig, check: bool) -> "ServedModel":
        from edgeml_runtime.engine.served_model import ServedModel  # brings numpy and the engine's library

        model = ServedModel(config, self._config.engine, self._config.cache_directory, self._metrics)
        if check:
            model.check_golden()
        return model

    def _take_out(self, key: tuple[str, str], reason: str) -> None:
        model = self._loaded.pop(key)
        if not key[1]:
            return
        self._reasons.pop(key, None)
        if reason:
            self._reasons[key] = (UNAVAILABLE, reason)
        self._retire(model)

    def _retire(self, model: "ServedModel") -> None:
        task = asyncio.get_running_loop().create_task(model.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
