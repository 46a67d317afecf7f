"""Settings of a server: options of ``headrace serve``, or environment variables that begin with ``HEADRACE_SERVE_``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.errors import DeclarationError

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "EdDSA"]
SHORTEST_SECRET = 32
SOME_KEY = "some"


class ServeSettings(BaseSettings):
    """Every option. Secrets are never printed.

    Attributes:
        host, port: where to listen; port 0: a free one.
        keys: the file of API keys; ``LOG.keys`` beside the log by default.
        keys_at_start: what the file of keys was when the server of a worker process started, ``some`` where it had a
            key; set by that server.
        jwt_secret, jwt_public_key: how JSON web tokens are checked, by HMAC or by a public key in a PEM file.
        jwt_algorithms: those that are taken; HS256 with a secret, RS256 and ES256 with a public key.
        jwt_audience, jwt_issuer: what a token must say, where they are set.
        rate: requests that one key, or one address, may make of one process, such as ``"600/minute"``; empty: any
            number.
        body_limit: bytes of a request's body; ``connections``: as many are open at once, and requests asked, in one
            process; those beyond are answered with 503.
        tls_cert, tls_key: PEM files; with them it is HTTPS.
        batch_window_ms: how long a request waits for others that are answered with it; 0: those that came together.
        deadline, longest_deadline: seconds that ``at_least=`` waits, by default and at most.
        ready_source_seconds, ready_sink_seconds: a source, or a sink's destination, may be away for so long before
            ``/v2/health/ready`` says no; None: for ever.
        ready_round_seconds, live_round_seconds: so old may the engine's last round be before ``ready``, and ``live``,
            say no; a model that is trained at an alarm makes a long round. None: as old as it likes.
        record_timeout, train_timeout: seconds until logging an answer, and a training, are given up.

    >>> ServeSettings(jwt_secret="0123456789abcdef0123456789abcdef").jwt_secret
    SecretStr('**********')
    """

    model_config = SettingsConfigDict(env_prefix="HEADRACE_SERVE_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys: Path | None = None
    keys_at_start: str | None = None
    jwt_secret: SecretStr | None = None
    jwt_public_key: Path | None = None
    jwt_algorithms: tuple[Algorithm, ...] = ()
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    rate: str = ""
    body_limit: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024
    connections: Annotated[int, Field(ge=1)] = 1000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    batch_window_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0
    deadline: Annotated[float, Field(ge=0)] = 5.0
    longest_deadline: Annotated[float, Field(ge=0)] = 60.0
    ready_source_seconds: Annotated[float, Field(ge=0)] | None = 10.0
    ready_sink_seconds: Annotated[float, Field(ge=0)] | None = None
    ready_round_seconds: Annotated[float, Field(gt=0)] | None = 60.0
    live_round_seconds: Annotated[float, Field(gt=0)] | None = 600.0
    record_timeout: Annotated[float, Field(gt=0)] = 10.0
    train_timeout: Annotated[float, Field(gt=0)] = 600.0

    @property
    def tokens(self) -> bool:
        """Return whether JSON web tokens are checked."""
        return self.jwt_secret is not None or self.jwt_public_key is not None

    @property
    def loopback(self) -> bool:
        """Return whether it listens where only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self, *, keys: bool) -> None:
        """Refuse what would be open to others, or cannot work.

        Args:
            keys: whether there are API keys.

        Raises:
            DeclarationError: what, and what to do.

        >>> ServeSettings(host="0.0.0.0").check(keys=False)
        Traceback (most recent call last):
        headrace.errors.DeclarationError: --host 0.0.0.0 would let anybody ask and train: no key is configured
          → Make one: headrace keys create --scope predict; or set HEADRACE_SERVE_JWT_SECRET; or listen on 127.0.0.1.
        """
        if not (self.loopback or keys or self.tokens):
            raise DeclarationError(
                f"--host {self.host} would let anybody ask and train: no key is configured",
                advice="Make one: headrace keys create --scope predict; or set HEADRACE_SERVE_JWT_SECRET; or listen on "
                "127.0.0.1.",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise DeclarationError("TLS needs both a certificate and its key", advice="Give --tls-cert and --tls-key.")
        for file in (self.tls_cert, self.tls_key, self.jwt_public_key):
            if file is not None and not file.is_file():
                raise DeclarationError(f"there is no file {file}")
        if self.jwt_secret is not None and self.jwt_public_key is not None:
            raise DeclarationError("tokens are checked by a secret or by a public key, not by both")
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value()) < SHORTEST_SECRET:
            raise DeclarationError(
                f"the secret that signs tokens is shorter than {SHORTEST_SECRET} characters",
                advice="python -c 'import secrets; print(secrets.token_urlsafe(48))'",
            )
        shared = self.jwt_public_key is None
        if any(name.startswith("HS") != shared for name in self.jwt_algorithms):
            raise DeclarationError(
                f"jwt_algorithms={list(self.jwt_algorithms)} do not go with {'a secret' if shared else 'a public key'}",
                advice="HS… are for a secret, the others for a public key.",
            )
        self._check_rate()

    def _check_rate(self) -> None:
        from limits import parse

        if self.rate:
            try:
                parse(self.rate)
            except ValueError as error:
                raise DeclarationError(f"rate={self.rate!r}: {error}", advice='Such as "600/minute".') from error
