# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The models of a server, by name, and whether they are ready."""

import logging
from time import perf_counter
from typing import TYPE_CHECKING

from edgeml_runtime.config import Config
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.metrics import Metrics

if TYPE_CHECKING:
    from edgeml_runtime.engine.served_model import ServedModel

logger = logging.getLogger(__name__)


class Engine:
    """Loads the configured models and finds them for requests.

    ``ready`` is true from the moment that all models are loaded until the server stops.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._configured = {model.name: model.version for model in config.models}
        self._loaded: dict[str, ServedModel] = {}
        self.ready = False

    def load(self) -> None:
        """Load all models, one after the other; slow, for a thread of its own. Raises StartError."""
        from edgeml_runtime.engine.served_model import ServedModel  # brings the engine's library

        for config in self._config.models:
            started = perf_counter()
            model = ServedModel(config, self._config.threads, self._metrics)
            self._loaded[config.name] = model
            logger.info(
                "loaded %s %s (%s) in %.3f s, one run takes %.0f us",
                *(model.name, model.version, model.digest, perf_counter() - started, model.compute_seconds * 1e6),
            )

    def is_loaded(self, name: str, version: str) -> bool:
        """Whether a configured model is loaded. Raises RequestError (not found)."""
        if name not in self._configured:
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not served here")
        if version and version != self._configured[name]:
            raise RequestError(
                Failure.NOT_FOUND, f"model '{name}' is served in version {self._configured[name]}, not '{version}'"
            )
        return name in self._loaded

    def model(self, name: str, version: str) -> "ServedModel":
        """The model; an empty version means the one that is served.

        Raises RequestError: not found, or unavailable while the model is being loaded.
        """
        if not self.is_loaded(name, version):
            raise RequestError(Failure.UNAVAILABLE, f"model '{name}' is still being loaded")
        return self._loaded[name]
