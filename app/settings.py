"""Every setting: environment variable or `.env` line, typed, with its unit and meaning; a wrong one is refused at
start.

Read only by the composition root and the commands. README's table of settings is held against this class by a test.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.prodia.faults import DEFAULT, parse_money

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: Any) -> Any:
    """Seconds in a duration such as 5, 2.5, 150ms, 5s, 2m, 12h or 7d. Raises ValueError."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", value, re.ASCII)
        if not found:
            raise ValueError("must be a duration such as 5s, 150ms or 2m")
        return float(found[1]) * _UNITS[found[2] or "s"]
    return value


Seconds = Annotated[float, BeforeValidator(seconds)]
SECRETS = ("gateway_key_pepper", "gateway_link_secret", "gateway_link_secret_second")


class Settings(BaseSettings):
    """All settings of one process. Secrets are masked in every representation."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True)

    sandbox: bool = Field(default=False, validation_alias=AliasChoices("sandbox"), exclude=True)

    prodia_token: SecretStr | None = Field(default=None, description="The upstream token. Required unless --sandbox.")
    prodia_token_file: Path | None = Field(default=None, description="A file that holds the upstream token instead.")
    prodia_base_url: str = Field(
        default="https://inference.prodia.com/v2", description="Where `/job` lives. https, or http on loopback."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="The ledger: `redis://`, `rediss://` or `unix://`. Required unless --sandbox.",
    )
    cache_redis_url: SecretStr | None = Field(
        default=None,
        description="Finished results; may evict. Default: `REDIS_URL`, with a warning outside the sandbox.",
    )
    gateway_tenants_file: Path | None = Field(
        default=None,
        description="YAML of tenants and policies. Required unless --sandbox. Read again whenever it changes.",
    )
    gateway_catalog_file: Path | None = Field(
        default=None, description="TOML with further job types, or other entries for built-in ones."
    )
    gateway_listen: str = Field(default="0.0.0.0:8080", description="Public listener, host:port.")
    gateway_ops_listen: str = Field(
        default="127.0.0.1:8081", description="Ops listener, host:port: metrics and health."
    )
    gateway_hosts: str = Field(
        default="",
        description="Host names of the public listener, separated by commas; another Host is a 421. Empty: any.",
    )
    gateway_public_url: str = Field(
        default="",
        description="Address that links in OpenAI's shape begin with. Empty: scheme and host as the call came.",
    )
    gateway_keep_alive: Seconds = Field(
        default=5.0, gt=0, le=3600, description="Seconds that a connection may be idle before it is closed."
    )
    gateway_body_memory: int = Field(
        default=192_000_000,
        ge=128_000_000,
        description="Bytes of request bodies that are read or held at once; above it requests are `overloaded`.",
    )
    gateway_key_pepper: SecretStr | None = Field(
        default=None, description="Secret of the keyed hashes, at least 32 characters. Required unless --sandbox."
    )
    gateway_key_pepper_file: Path | None = Field(default=None, description="A file that holds that secret instead.")
    gateway_link_secret: SecretStr | None = Field(
        default=None, description="Secret that signs image links, at least 32 characters. Default: the pepper."
    )
    gateway_link_secret_file: Path | None = Field(default=None, description="A file that holds that secret instead.")
    gateway_link_secret_second: SecretStr | None = Field(
        default=None, description="A second secret whose links are accepted, for the time of an exchange."
    )
    gateway_link_secret_second_file: Path | None = Field(
        default=None, description="A file that holds the second one instead."
    )
    gateway_data_dir: Path = Field(
        default=Path(".kontext-gateway"), description="Private directory: the sandbox's Valkey, bill and secrets."
    )
    gateway_upstream_concurrency: int = Field(
        default=24, ge=1, le=100_000, description="Jobs in flight to the upstream over the whole fleet."
    )
    gateway_upstream_deadline: Seconds = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="Seconds for one request from admission on: waiting and retries included.",
    )
    gateway_outcomes: str = Field(
        default="",
        description="What upstream outcomes mean for money where it differs, such as `failed=charge,error=refund`.",
    )
    gateway_moderation_patterns: str = Field(
        default="",
        description="Regular expressions, one a line, that tell a moderated job by its error text. Default: built in.",
    )
    gateway_queue_ttl: Seconds = Field(
        default=3600.0, ge=1, le=43_200, description="Seconds that an asynchronous job may wait for its turn."
    )
    gateway_queue_seats: int = Field(
        default=24, ge=0, le=10_000, description="Asynchronous jobs that a process works on at once; 0: none."
    )
    gateway_queue_jobs: int = Field(
        default=2000, ge=1, le=1_000_000, description="Asynchronous jobs of one tenant that may wait."
    )
    gateway_queue_tenant_bytes: int = Field(
        default=67_108_864,
        ge=0,
        le=1 << 34,
        description="Bytes of uploads that one tenant's jobs may hold.",
    )
    gateway_queue_bytes: int = Field(
        default=134_217_728, ge=0, le=1 << 36, description="Bytes of uploads that all asynchronous jobs may hold."
    )
    gateway_webhook_pauses: str = Field(
        default="5s,30s,2m,10m,30m,2h,5h,10h",
        description="Pauses between attempts to deliver a webhook; after the last attempt it is dead.",
    )
    gateway_webhook_loopback: bool = Field(
        default=False, description="For tests only: webhooks may go over plain http to this machine."
    )
    gateway_drain_delay: Seconds = Field(
        default=5.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM in which readiness is off and requests are still taken.",
    )
    gateway_drain_timeout: Seconds = Field(
        default=130.0, ge=0, le=3600, description="Seconds after that in which jobs in flight are finished."
    )
    gateway_redis_timeout: Seconds = Field(
        default=0.15, gt=0, le=5, description="Seconds that one round trip to Redis may take."
    )
    gateway_redis_connect_timeout: Seconds = Field(
        default=0.1, gt=0, le=5, description="Seconds that connecting to Redis may take."
    )
    gateway_accept_volatile_ledger: bool = Field(
        default=False, description="Start although the ledger's Redis may evict keys or does not persist them."
    )
    gateway_hot_cache_bytes: int = Field(
        default=67_108_864, ge=0, le=1 << 34, description="Bytes of pictures that a process keeps for repeats; 0: none."
    )
    gateway_image_url_ttl: Seconds = Field(
        default=3600.0, ge=1, le=604800, description="Seconds that a signed image link in a reply works."
    )
    gateway_lineage_ttl: Seconds = Field(
        default=7776000.0, ge=1, le=31622400, description="Seconds that it is known how a picture came to be."
    )
    gateway_client_token_ttl: Seconds = Field(
        default=600.0, ge=1, le=86400, description="Seconds that a client token lives where the call does not say."
    )
    gateway_client_token_max_ttl: Seconds = Field(
        default=3600.0, ge=1, le=86400, description="Seconds that a client token may be asked to live."
    )
    gateway_log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level logged."
    )
    gateway_sandbox_time_scale: float = Field(
        default=1.0, ge=0, le=100, description="Sandbox only: a job's typical time times this."
    )
    gateway_sandbox_faults: Path | None = Field(
        default=None, description="Sandbox only: faults and switches of the stand-in, TOML or JSON."
    )
    gateway_sandbox_listen: str = Field(
        default="127.0.0.1:0", description="Sandbox only: where the stand-in listens, host:port; 0 is a free port."
    )

    @model_validator(mode="after")
    def _sound(self) -> Settings:
        for name in ("prodia_token", *SECRETS):
            if (path := getattr(self, f"{name}_file")) is not None:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name.upper()} and {name.upper()}_FILE: set one of them")
                setattr(self, name, _mounted(path, f"{name.upper()}_FILE"))
        for name in ("redis_url", "cache_redis_url"):
            url = getattr(self, name)
            if url is not None and not re.match(r"(redis|rediss|unix)://.", url.get_secret_value()):
                raise ValueError(f"{name.upper()} must start with redis://, rediss:// or unix://")
        known = {field.upper() for field in type(self).model_fields} | {"GATEWAY_URL", "GATEWAY_KEY"}
        for name in (*os.environ, *(name.upper() for name in dotenv_values(".env"))):
            if name.startswith("GATEWAY_") and name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        loopback = re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)", self.prodia_base_url)
        if not loopback and not re.match(r"https://[^/@\s]+", self.prodia_base_url):
            raise ValueError("PRODIA_BASE_URL must be https, or http on loopback")
        for name in ("gateway_listen", "gateway_ops_listen", "gateway_sandbox_listen"):
            if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", getattr(self, name)):
                raise ValueError(f"{name.upper()} must be host:port")
        for host in self.hosts:
            if not re.fullmatch(r"[a-z0-9._-]{1,255}|\[[0-9a-f:.]+\]", host):
                raise ValueError("GATEWAY_HOSTS must be host names without scheme and port, separated by commas")
        if self.gateway_client_token_ttl > self.gateway_client_token_max_ttl:
            raise ValueError("GATEWAY_CLIENT_TOKEN_TTL must not be above GATEWAY_CLIENT_TOKEN_MAX_TTL")
        if self.gateway_public_url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", self.gateway_public_url):
            raise ValueError("GATEWAY_PUBLIC_URL must be http:// or https://, without a query")
        parse_money(self.gateway_outcomes)
        if not self.webhook_pauses or max(self.webhook_pauses) > 86_400:
            raise ValueError("GATEWAY_WEBHOOK_PAUSES must be durations of at most 1d, separated by commas")
        for pattern in self.moderation_patterns:
            try:
                re.compile(pattern)
            except re.error:
                raise ValueError("GATEWAY_MODERATION_PATTERNS holds a wrong regular expression") from None
        for name in SECRETS:
            secret = getattr(self, name)
            if secret is not None and len(secret.get_secret_value()) < 32:
                raise ValueError(f"{name.upper()} must have at least 32 characters")
        if not self.sandbox:
            needed = ("prodia_token", "redis_url", "gateway_key_pepper", "gateway_tenants_file")
            if missing := [name.upper() for name in needed if getattr(self, name) is None]:
                raise ValueError(f"{', '.join(missing)}: required without --sandbox")
        return self

    @property
    def hosts(self) -> frozenset[str]:
        """The host names of the public listener; empty for any."""
        return frozenset(name.strip().lower().rstrip(".") for name in self.gateway_hosts.split(",") if name.strip())

    @property
    def webhook_pauses(self) -> tuple[float, ...]:
        """Seconds between attempts. Raises ValueError."""
        return tuple(float(seconds(word.strip())) for word in self.gateway_webhook_pauses.split(",") if word.strip())

    @property
    def moderation_patterns(self) -> tuple[str, ...]:
        """The patterns in force."""
        own = tuple(line.strip() for line in self.gateway_moderation_patterns.splitlines() if line.strip())
        return own or DEFAULT.patterns


class LedgerSettings(Settings):
    """For commands that only need the ledger and the tenants: nothing about the upstream is required."""

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "sandbox": True}


def _mounted(path: Path, setting: str) -> SecretStr:
    """The secret in a file, without the white space around it. Raises ValueError."""
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{setting} cannot be read") from None
    if not secret:
        raise ValueError(f"{setting} is empty")
    return SecretStr(secret)


def address(listen: str) -> tuple[str, int]:
    """Host and port of a listener. Raises ValueError: one of them is missing, which would mean every interface."""
    host, _, port = listen.rpartition(":")
    if not host.strip("[]") or not port.isdecimal():
        raise ValueError(f"{listen[:64]!r} must be host:port, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)
