"""The server: MONAI Label's own endpoints behind a gate and a guard, with errors in sentences.

The gate (`gate.py`) decides from a request's headers who may ask, and how much. Before an endpoint runs, the guard
reads everything the client sent: expressions are refused (400), names and ids must be known (404), settings must be
what their task takes (400). Whatever goes wrong afterwards is told as {"detail": sentence}. Left out are the endpoints
that read or write what the app does not need: DICOMweb proxy, model files, sessions, whole-slide images.

Imported after `launch.configure` only.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, info, login, logs, scoring, train
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile as Upload

from unicorn_monai.monailabel.app import TASKS
from unicorn_monai.monailabel.client import Unknown, file_name, known, refuse_expressions, short_name
from unicorn_monai.monailabel.gate import Gate
from unicorn_monai.system.errors import root_cause

logger = logging.getLogger(__name__)

RESERVED = ("image", "label", "label_map", "model", "method", "strategy", "source")  # said by the address or a file
NEW_IMAGE = ("/datastore", "/datastore/image")  # where a PUT brings a new id
USER, ADMIN = (Depends(RBAC(r)) for r in (settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


async def guard(request: Request) -> None:
    """Look at what a client sent, before the endpoint sees it: 400 (``ValueError``) or 404 (:class:`Unknown`)."""
    query, path = dict(request.query_params), dict(request.path_params)
    body = await _settings(request)
    refuse_expressions({"path": path, "query": query, "body": body})
    reserved = sorted(set(RESERVED) & set(body))
    if reserved:
        raise ValueError(f"The settings hold {reserved}; the address and the files of a request say these.")
    app, kind = app_instance(), request.url.path.strip("/").split("/")[0]
    if kind in TASKS and path:
        known(TASKS[kind][0], next(iter(path.values())), app.tasks_of(kind))
    if query.get("tag"):
        file_name("label tag", query["tag"])
    new = kind == "datastore" and request.method == "PUT" and request.url.path.rstrip("/") in NEW_IMAGE
    for key in ("image", "label", "id"):
        if query.get(key) and new:
            file_name("image id", query[key])
        elif query.get(key):
            known("image", query[key], app.datastore().list_images())
    if kind in TASKS and request.method == "POST":
        for name in list(path.values()) or list(app.tasks_of(kind)):  # without a name: all tasks, settings by name
            app.check(kind, name, body if path else _object(json.dumps(body.get(name))))


async def _settings(request: Request) -> Mapping[str, Any]:
    """The settings in the body of a request: its JSON object, or the form fields ``params`` and ``info``."""
    kind = request.headers.get("content-type", "")
    if "form" in kind:
        form = await request.form()
        for file in (value for value in form.values() if isinstance(value, Upload)):
            short_name(file.filename or "")
        return {k: v for field in ("params", "info") for k, v in _object(form.get(field) or "{}").items()}
    return _object((await request.body()).decode(errors="replace") or "{}")


def _object(text: Any) -> Mapping[str, Any]:
    """The JSON object in a text; null is an empty one. NaN is no JSON: what holds it could not be told any more."""
    try:
        content = json.loads(text, parse_constant=_refuse) if isinstance(text, str) else ()
    except (ValueError, RecursionError):
        content = ()
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise ValueError(f"The settings are {str(text)[:80]!r}; expected a JSON object.")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@asynccontextmanager
async def ready(app: FastAPI) -> AsyncIterator[None]:
    """Make the app before the first request; scoring starts in the background."""
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    yield


def tell(request: Request, error: Exception) -> JSONResponse:
    """What went wrong, in a sentence: the client's mistakes as 404 and 400, the server's as 500."""
    status = 404 if isinstance(error, Unknown) else 400 if isinstance(error, ValueError) else 500
    if status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    cause = root_cause(error)
    text = str(cause) if isinstance(cause, ValueError | RuntimeError) else f"{type(cause).__name__}: {cause}"
    return JSONResponse({"detail": text}, status)


def tell_what_is_wrong(_: Request, error: RequestValidationError) -> JSONResponse:
    """What an endpoint cannot take, in a sentence."""
    wrong = [f"'{' '.join(map(str, entry['loc']))}': {entry['msg']}" for entry in error.errors()]
    return JSONResponse({"detail": f"The request cannot be used ({'; '.join(wrong)[:400]})."}, 422)


async def tell_of_gpu(user: Any = ADMIN) -> Any:
    """What the driver's own tool tells, where there is one."""
    if shutil.which("nvidia-smi") is None:
        raise Unknown("This server has no nvidia-smi, so it knows of no GPU. /info/ tells the devices of each model.")
    return await logs.gpu_info(user)


async def tell_of_no_password() -> None:
    """What a client gets that asks for a token nobody needs."""
    raise ValueError("This server asks for no password (MONAI_LABEL_AUTH_ENABLE), so it gives no token. Ask without.")


def run_inference(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    params: str = Form("{}"),
    file: UploadFile | None = None,
    label: UploadFile | None = None,
    output: infer.ResultType | None = None,
    user: Any = USER,
) -> Any:
    """MONAI Label's inference, in a thread: the server answers while it works."""
    if not image and not file:
        raise ValueError("There is nothing to work on; give the id of a study (?image=...) or upload a file.")
    if output == infer.ResultType.dicom_seg:
        raise ValueError("The output 'dicom_seg' needs DICOM studies; expected image, json or all.")
    return infer.run_inference(background_tasks, model, image, "", params, file, label, output)


def build(hosts: Collection[str] = ()) -> FastAPI:
    """The web application, for the environment of `launch.configure`; ``hosts``: what the server may be called."""
    app = FastAPI(title="unicorn_monai", docs_url="/", dependencies=[Depends(guard)], lifespan=ready)
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]  # as browsers write them
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Gate, hosts=hosts, origins=origins)  # the last one added comes first
    app.post("/infer/{model}")(run_inference)
    app.get("/logs/gpu")(tell_of_gpu)
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        app.post("/auth/token")(tell_of_no_password)
    for endpoint in (info, login, batch_infer, train, activelearning, scoring, datastore, logs):
        app.include_router(endpoint.router)
    for kind in (ValueError, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(RequestValidationError, tell_what_is_wrong)  # pyrefly: ignore
    return app
