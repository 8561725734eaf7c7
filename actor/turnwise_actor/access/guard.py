"""Lets a call pass or not: who calls is found once a call or stream, never again for its messages.

UNAUTHENTICATED: no credential, or one that is unknown, revoked or expired. PERMISSION_DENIED: not of a
role that the method wants. A stream ends with UNAUTHENTICATED soon after its credential does.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from turnwise_actor.access.credentials import ROLES, Bucket, Credentials, Principal
from turnwise_actor.access.handlers import Behaviour, Context, behaviour_of, drive, rebuilt
from turnwise_actor.access.server_access import ServerAccess

TRAINER = "trainer"
"""The role of the trainer; no credential file can give it."""
ANY_ROLE = frozenset((*ROLES, TRAINER))

RULES: Mapping[str, frozenset[str] | None] = {
    "turnwise.v1.Dialogue": frozenset({"frontend", "teacher"}),
    "turnwise.v1.Dialogue/DescribeDomain": frozenset({"frontend", "teacher", "operator"}),
    "turnwise.v1.Training": frozenset({"actor"}),
    "turnwise.v1.Registry": frozenset({"frontend", "teacher", "operator"}),
    "turnwise.v1.Operator": frozenset({"operator"}),
    "turnwise.v1.Trainer": frozenset({TRAINER}),
    "grpc.health.v1.Health": None,
    "grpc.reflection.v1alpha.ServerReflection": ANY_ROLE,
}
"""Roles that may call a service, or one method of it. None: anybody. A service that is not here: nobody."""

_LOOK_INTERVAL_S = 1.0
_caller: ContextVar[Principal | None] = ContextVar("caller", default=None)

logger = logging.getLogger(__name__)


def caller() -> Principal | None:
    """Who made the call that is being answered; None: this server asks nobody."""
    return _caller.get()


class Callers(Protocol):
    """Knows the callers of a server."""

    def find(self, context: Context) -> Principal | None:
        """Who calls; None: nobody known."""
        ...

    def still_holds(self, principal: Principal) -> bool:
        """Whether one found earlier may go on."""
        ...


def callers_of(access: ServerAccess) -> Callers | None:
    """The callers that a server knows; None: it asks nobody. Raises CredentialFileError."""
    if access.credentials is not None:
        return _Listed(access.credentials)
    return _Certified() if access.client_ca is not None else None


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Asks every caller of one server; `watch` runs beside it and ends streams."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._guarded: dict[str, Any] = {}
        self._streams: set[_Stream] = set()
        self._told = Bucket(1.0)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler, behind the question who calls."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or (wanted := roles_for(method)) is None:
            return handler
        if method not in self._guarded:
            around = self._stream if handler.response_streaming else self._call
            self._guarded[method] = rebuilt(handler, around(behaviour_of(handler), method, wanted))
        return self._guarded[method]

    async def watch(self) -> None:
        """Ends streams whose credential is no longer in force; runs until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            for stream in self._streams:
                if not self._callers.still_holds(stream.principal):
                    stream.revoke()

    def _call(self, behaviour: Behaviour, method: str, wanted: frozenset[str]) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            _caller.set(await self._admit(method, wanted, context))
            return await behaviour(request, context)

        return call

    def _stream(self, behaviour: Behaviour, method: str, wanted: frozenset[str]) -> Behaviour:
        async def stream(request: Any, context: Context) -> None:
            principal = await self._admit(method, wanted, context)
            _caller.set(principal)
            watched = _Stream(principal, asyncio.create_task(drive(behaviour(request, context), context)))
            self._streams.add(watched)
            try:
                await asyncio.wait({watched.work})
            finally:
                self._streams.discard(watched)
                watched.work.cancel()
                await asyncio.gather(watched.work, return_exceptions=True)
            if watched.revoked:
                await self._refuse(
                    context,
                    grpc.StatusCode.UNAUTHENTICATED,
                    f"the credential of {principal.name} was changed, revoked, or has expired",
                )
            watched.work.result()

        return stream

    async def _admit(self, method: str, wanted: frozenset[str], context: Context) -> Principal:
        principal = self._callers.find(context)
        if principal is None:
            bearer = _bearer(context) is not None
            got = "a token that is unknown, revoked or expired" if bearer else "none"
            message = f"{method}: got {got}; wanted the bearer token or certificate of a credential"
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, message)
        if not principal.roles & wanted:
            has = ", ".join(sorted(principal.roles)) or "none"
            message = f"{method} is for {' or '.join(sorted(wanted))}; {principal.name} has the role {has}"
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, message)
        return principal

    async def _refuse(self, context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
        if self._told.take():  # who knocks often cannot fill the disk
            logger.warning("refused %s: %s", context.peer(), message)
        await context.abort(code, message)
        raise AssertionError("abort raises")


@dataclass(eq=False)
class _Stream:
    """A stream being answered."""

    principal: Principal
    work: asyncio.Task[None]
    revoked: bool = False

    def revoke(self) -> None:
        self.revoked = True
        self.work.cancel()


def roles_for(method: str) -> frozenset[str] | None:
    """Roles that may call `/package.Service/Method`; None: anybody."""
    service, _, _ = method.strip("/").partition("/")
    nobody = frozenset[str]()
    return RULES.get(method.strip("/"), RULES.get(service, nobody))


class _Listed:
    """Callers of a credential file: by their token, else by their certificate's name."""

    def __init__(self, file: Path) -> None:
        self._credentials = Credentials(file)

    def find(self, context: Context) -> Principal | None:
        token = _bearer(context)
        if token is not None:
            return self._credentials.by_token(token)
        names = _certified_names(context)
        return self._credentials.by_certificate(names) if names else None

    def still_holds(self, principal: Principal) -> bool:
        return self._credentials.still_holds(principal)


class _Certified:
    """Callers with a verified certificate and no file: its organizational units are their roles."""

    def find(self, context: Context) -> Principal | None:
        pem = context.auth_context().get("x509_pem_cert", ())
        return next((_holder(each) for each in pem), None)

    def still_holds(self, principal: Principal) -> bool:
        return time.time() < principal.expires


class Local:
    """The one caller that knows a token: processes of this machine that may read the data folder."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._principal = Principal("local", ANY_ROLE)

    def find(self, context: Context) -> Principal | None:  # noqa: D102
        given = _bearer(context) or ""
        return self._principal if hmac.compare_digest(given.encode(), self._token.encode()) else None

    def still_holds(self, principal: Principal) -> bool:  # noqa: D102
        return True


@lru_cache(maxsize=1024)
def _holder(pem: bytes) -> Principal:
    # Imported where it is wanted: 2.6 MB, and a tenth of an actor's start.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_pem_x509_certificate(pem)
    subject, expires = certificate.subject, certificate.not_valid_after_utc.timestamp()
    names = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    units = {str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)}
    name = names[0] if names else "a certificate without a name"
    return Principal(name, frozenset(units & set(ROLES)), expires=expires)


def _certified_names(context: Context) -> list[str]:
    told = context.auth_context()
    found = (*told.get("x509_common_name", ()), *told.get("x509_subject_alternative_name", ()))
    return [bytes(name).decode(errors="replace") for name in found]


def _bearer(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = (value if isinstance(value, str) else "").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None
