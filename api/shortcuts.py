"""Connexion's routers, passed by where the way is plain: they try one pattern after the other for each request."""

from __future__ import annotations

from typing import Any

from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.middleware.routing import RoutingMiddleware, RoutingOperation
from connexion.middleware.swagger_ui import SwaggerUIMiddleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send


class Ui(SwaggerUIMiddleware):  # type: ignore[misc]
    """Only what is below /ui is asked of Swagger UI's router."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/ui"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Routing(RoutingMiddleware):  # type: ignore[misc]
    """A path without parameters is looked up in a table."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._plain: dict[tuple[str, str], str] = {}

    def add_api(self, *args: Any, **kwargs: Any) -> None:
        """As Connexion does, and the table."""
        super().add_api(*args, **kwargs)
        for mount in self.router.routes:
            if isinstance(mount, Mount) and mount.path == "":
                self._plain |= {
                    (method, route.path): route.endpoint.operation_id
                    for route in mount.routes
                    if isinstance(route, Route) and isinstance(route.endpoint, RoutingOperation)
                    for method in route.methods or ()
                    if "{" not in route.path
                }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation_id = self._plain.get((scope.get("method", ""), scope.get("path", "")))
        if operation_id is None or scope.get("root_path"):
            await super().__call__(scope, receive, send)
            return
        scope["extensions"][ROUTING_CONTEXT] = {"api_base_path": "", "operation_id": operation_id}
        scope["path_params"] = {}
        await self.app(scope, receive, send)
