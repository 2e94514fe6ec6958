# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The models of a server: which are configured, which are loaded, and how a version takes the place of another."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import isfinite
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

_STILL_LOADING = "it is still being loaded"

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
        #: By name and version; the version is empty for the one that is meant when none is named.
        self._loaded: dict[tuple[str, str], ServedModel] = {}
        #: Why a version is not loaded, or was not loaded again.
        self._failures: dict[tuple[str, str], str] = {}
        self._configure(config.models)
        self._changing = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_change: list[Callable[[], None]] = []
        self.ready = False

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when other models may be configured than before."""
        self._on_change.append(callback)

    async def start(self) -> None:
        """Load all models, one after the other. Raises StartError."""
        async with self._changing:
            for name in list(self._configured):
                await self._replace(name, again=True, beside=False)

    async def load(self, name: str) -> None:
        """Load what the configuration now says of a model, beside what serves, then switch to it.

        Requests under way finish on what they began with. Goes on when the caller is cancelled.
        Raises RequestError: not found when the configuration lacks the model, invalid when it
        cannot be loaded; what served goes on then.
        """
        await self._exclusively(partial(self._load, name))

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests under way finish. Raises RequestError (not found)."""
        await self._exclusively(partial(self._unload, name))

    async def reload(self) -> None:
        """Bring the loaded models to what the configuration now says; what cannot be loaded leaves the old serving.

        Models that were unloaded are loaded again; those whose configuration is as it was stay.
        Raises RequestError (invalid) that names all that failed.
        """
        await self._exclusively(self._reload)

    def index(self, protocol: str | None = None) -> list[ModelStatus]:
        """All configured models, and those that still serve though they no longer are.

        The reason of one that is ready tells why it could not be loaded again. ``protocol``: only
        those for its clients, here and below.
        """
        listed = {(config.name, config.version) for configs in self._configured.values() for config in configs}
        lines = []
        for key in sorted(listed | {key for key in self._loaded if key[1]}):
            if not self._is_for(protocol, *key):
                continue
            state = READY if key in self._loaded else UNAVAILABLE if key in self._failures else LOADING
            lines.append(ModelStatus(*key, state, self._failures.get(key, _STILL_LOADING if state == LOADING else "")))
        return lines

    def is_loaded(self, name: str, version: str, protocol: str | None = None) -> bool:
        """Whether a configured model is loaded. Raises RequestError (not found)."""
        if (name, version) in self._loaded and self._is_for(protocol, name, version):
            return True
        known = [version for version in self._known_versions(name) if self._is_for(protocol, name, version)]
        if not known:
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not served here")
        if version and version not in known:
            raise RequestError(
                Failure.NOT_FOUND, f"model '{name}' is served in version {', '.join(known)}, not '{version}'"
            )
        if not version and known[0] != self._known_versions(name)[0]:
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is served here in version {', '.join(known)} only")
        return False

    def model(self, name: str, version: str, protocol: str | None = None) -> "ServedModel":
        """The model; an empty version means the first that is configured.

        Use it before the next ``await``: afterwards it may be unloaded, and refuses requests then.
        Raises RequestError: not found, or unavailable while the model is not loaded.
        """
        model = self._loaded.get((name, version))
        if model is None or (protocol is not None and protocol not in model.config.protocols):
            self.is_loaded(name, version, protocol)
            key = (name, version or self._known_versions(name)[0])
            reason = self._failures.get(key, _STILL_LOADING)
            raise RequestError(Failure.UNAVAILABLE, f"model '{name}' is not loaded: {reason}")
        return model

    def versions(self, name: str, protocol: str | None = None) -> list[str]:
        """Versions of a model that are loaded, the one that is meant when none is named first."""
        default = self._loaded.get((name, ""))
        first = [default.version] if default else []
        versions = first + [key[1] for key in self._loaded if key[0] == name and key[1] not in ("", *first)]
        return [version for version in versions if self._is_for(protocol, name, version)]

    # -- private ---------------------------------------------------------------------------------------------------

    def _is_for(self, protocol: str | None, name: str, version: str) -> bool:
        """Whether clients of a protocol may see that version of a model."""
        loaded = self._loaded.get((name, version))
        configs = [loaded.config] if loaded else self._configured.get(name, [])
        return protocol is None or all(
            protocol in config.protocols for config in configs if version in ("", config.version)
        )

    async def _exclusively(self, change: Callable[[], Coroutine[None, None, None]]) -> None:
        """Make a change to the loaded models: one at a time, to its end even when the caller is cancelled."""

        async def make() -> None:
            async with self._changing:
                await change()

        task = self._keep(make())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # told to the caller, or to nobody
        try:
            await asyncio.shield(task)
        finally:
            del task  # its error's traceback knows this frame

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, name: str) -> None:
        self._configure(self._current_models(), only=name)
        self._changed()
        if name not in self._configured:
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not in the configuration")
        try:
            await self._replace(name, again=True, beside=True)
        except StartError as error:
            raise RequestError(Failure.INVALID, f"model '{name}' was not loaded: {error}") from None

    async def _unload(self, name: str) -> None:
        self.is_loaded(name, "")
        for version in self._known_versions(name):
            self._failures[name, version] = "it was unloaded on request"
        self._take_out(name)

    async def _reload(self) -> None:
        self._configure(self._current_models())
        for name in {name for name, _ in self._loaded} - self._configured.keys():
            self._take_out(name)
        self._changed()
        failures = []
        for name in list(self._configured):
            try:
                await self._replace(name, again=False, beside=True)
            except StartError as error:
                failures.append(str(error))
        if failures:
            raise RequestError(Failure.INVALID, "; ".join(failures))

    def _changed(self) -> None:
        for callback in self._on_change:
            callback()

    def _current_models(self) -> tuple[ModelConfig, ...]:
        try:
            return self._read_models()
        except ConfigurationError as error:
            raise RequestError(Failure.INVALID, f"the configuration cannot be read: {error}") from None

    def _configure(self, models: tuple[ModelConfig, ...], only: str | None = None) -> None:
        for name in list(self._configured) if only is None else [only]:
            self._configured.pop(name, None)
        for model in models:
            if only in (None, model.name):
                self._configured.setdefault(model.name, []).append(model)
        self._failures = {
            (name, version): reason
            for (name, version), reason in self._failures.items()
            if version in self._known_versions(name)
        }

    def _known_versions(self, name: str) -> list[str]:
        """Versions of a model that are configured, then those that only still serve."""
        configured = [config.version for config in self._configured.get(name, ())]
        return [*configured, *(version for version in self.versions(name) if version not in configured)]

    async def _replace(self, name: str, again: bool, beside: bool) -> None:
        """Load all configured versions of a model, then let them take the place of the loaded ones. Raises StartError.

        ``again``: also those that are loaded as configured. ``beside``: without disturbing what serves, and checked.
        """
        fresh: list[ServedModel] = []
        configs = self._configured[name]
        for config in configs:
            self._failures.pop((name, config.version), None)
        try:
            for config in configs:
                current = self._loaded.get((name, config.version))
                if current is not None and not again and current.config == config:
                    fresh.append(current)
                else:
                    fresh.append(await self._build(config, beside))
        except StartError as error:
            for config in configs:
                if (name, config.version) not in self._loaded:
                    self._failures.setdefault((name, config.version), f"another version was not loaded: {error}")
            for model in fresh:
                if model not in self._loaded.values():
                    self._keep(model.retire())
            raise
        old = self._take_out(name, keep=fresh)
        for model in fresh:
            if model not in old:
                model.enter_service(self._metrics)
            self._loaded[name, model.version] = model
        self._loaded[name, ""] = fresh[0]

    async def _build(self, config: ModelConfig, beside: bool) -> "ServedModel":
        """A loaded model, not yet in service. Raises StartError."""
        started = perf_counter()

        def build() -> "ServedModel":
            arguments = (config, self._config.engine, self._config.cache_directory)
            if beside:
                from edgeml_runtime.engine.trial import load_beside

                return load_beside(*arguments)
            from edgeml_runtime.engine.served_model import ServedModel  # brings numpy and the engine's library

            return ServedModel(*arguments, check=True)

        try:
            model = await asyncio.get_running_loop().run_in_executor(self._loader, build)
        except Exception as error:
            if not isinstance(error, StartError):
                logger.exception("cannot load %s %s", config.name, config.version)
                error = StartError(f"{config.path}: {type(error).__name__}: {error}")
            self._failures[config.name, config.version] = str(error)
            logger.error("cannot load %s %s: %s", config.name, config.version, error)
            raise error from None
        logger.info(
            "loaded %s %s (%s) in %.3f s, %s",
            *(model.name, model.version, model.digest or "no digest", perf_counter() - started),
            f"one run takes {model.compute_seconds * 1e6:.0f} us" if isfinite(model.compute_seconds) else "unmeasured",
        )
        return model

    def _take_out(self, name: str, keep: Sequence["ServedModel"] = ()) -> list["ServedModel"]:
        """Take all versions of a model out of service, and give what they hold back when their requests are done."""
        taken = {key: self._loaded.pop(key) for key in list(self._loaded) if key[0] == name}
        models = [model for key, model in taken.items() if key[1]]
        for model in models:
            if model not in keep:
                self._keep(model.retire())
        return models
