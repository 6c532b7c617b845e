"""The palette's arguments through vLLM's HTTP servers: `domain`, `latent`, ... in requests, `latent_codes` in answers.

An endpoint plugin of vLLM adds one middleware (`middleware`), which takes the arguments out of a request. What
reaches vLLM by another way than that middleware is refused: no argument is dropped.
"""

import functools
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from vllm import plugins
from vllm.renderers.online_renderer import OnlineRenderer

from ..configuration_palette import PaletteConfig
from .middleware import SERVED_PATHS, PaletteMiddleware
from .requests import EXTENSION_FIELDS, pop_palette_arguments

_WRAPPED = "_reads_palette_arguments"


def install() -> None:
    """
    Add [`PaletteEndpoint`] to the endpoint plugins of this process, which vLLM loads by name only (`VLLM_PLUGINS`),
    and let vLLM refuse palette arguments that come to it by another way than that endpoint's middleware: batch files,
    servers of one's own. Called once a palette model's config has been read.
    """
    if not hasattr(plugins.load_endpoint_plugins, _WRAPPED):
        plugins.load_endpoint_plugins = _with_palette_endpoint(plugins.load_endpoint_plugins)
    for name in ("preprocess_cmpl", "preprocess_chat"):
        if not hasattr(getattr(OnlineRenderer, name), _WRAPPED):
            setattr(OnlineRenderer, name, _refusing_unread_arguments(getattr(OnlineRenderer, name)))


def _with_palette_endpoint(load: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    @functools.wraps(load)
    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> list[Any]:
        return [*load(*args, **kwargs), PaletteEndpoint()]

    setattr(load_endpoint_plugins, _WRAPPED, True)
    return load_endpoint_plugins


def _refusing_unread_arguments(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(preprocess)
    async def refuse_or_preprocess(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.model_config.hf_config, PaletteConfig):
            body: dict[str, Any] = dict(request.model_extra or {})
            body.update({field: dict(getattr(request, field, None) or {}) for field in EXTENSION_FIELDS})
            names = list(pop_palette_arguments(body))
            if names:
                raise ValueError(
                    f"{names} are read by vLLM's HTTP server alone, at {', '.join(SERVED_PATHS)}. Send the request "
                    "there, or put latent ids into its prompt."
                )
        return await preprocess(self, request, *args, **kwargs)

    setattr(refuse_or_preprocess, _WRAPPED, True)
    return refuse_or_preprocess


class PaletteEndpoint:
    """The endpoint plugin: no route of its own, a middleware on vLLM's."""

    name = "reasoning_palette"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        app.add_middleware(PaletteMiddleware, state=app.state)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        config = state.vllm_config.model_config.hf_config
        state.palette_config = config if isinstance(config, PaletteConfig) else None
