"""One typed settings object: a YAML file, overridden by `ELNET_*` environment variables."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_data_path
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from active_learning.cron import Cron
from active_learning.strategy import HYBRID, Strategy
from model.errors import ELNetError
from model.symmetry import FLIPS

Share = Annotated[float, Field(ge=0, le=1)]
Hours = Annotated[float, Field(gt=0, le=24 * 366)]
RoleName = Literal["viewer", "lead", "admin"]  # of active_learning.ledger.Role


class _Section(BaseModel):
    """A group of settings; a name that does not exist is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


def _none_as_text(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _web_address(value: str | None) -> str | None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} must start with http:// or https://")
    return value.rstrip("/") if value else None


class LabelStudioSettings(_Section):
    """The Label Studio server. Without a url, an embedded one is started from its own environment."""

    url: str | None = None
    token: SecretStr | None = None  # personal access token or legacy token of the lead's user
    machine_token: SecretStr | None = None  # of a second user: accepted masks are stored under it
    host: str = "127.0.0.1"  # of the embedded server
    port: int = Field(default=8080, ge=0, le=65535)  # 0: any free port
    username: str = "lead@elnet.local"  # of the embedded server
    document_root: str | None = None  # local files root as the server itself sees it; default: as seen here

    _is_address = field_validator("url")(_web_address)


class WebSettings(_Section):
    """The backend as Label Studio and annotators reach it."""

    host: str = "127.0.0.1"
    port: int = Field(default=9090, ge=0, le=65535)  # 0: any free port
    public_url: str | None = None  # as Label Studio reaches it; default http://host:port
    threads: int = Field(default=8, ge=1)
    username: str | None = None  # Basic auth of the ML contract, off without a password
    password: SecretStr | None = None
    webhook_secret: SecretStr | None = None  # expected in the X-ELNet-Secret header


class RoleRules(_Section):
    """Which role those have for whom somebody else vouches."""

    roles: dict[str, RoleName] = {}  # group -> role; the highest counts, anew at each sign-in
    default_role: RoleName | None = None  # of who is in none of these groups; None: is not let in

    _none_as_text = field_validator("default_role", mode="before")(_none_as_text)


class ProxySettings(RoleRules):
    """Sign-in by a reverse proxy that knows its users. Off without a header."""

    header: str | None = None  # with the user's name, as Remote-User; the proxy must set or remove it always
    groups_header: str | None = None  # with their groups, separated by commas
    default_role: RoleName | None = "viewer"


class OidcSettings(RoleRules):
    """Sign-in by an OpenID Connect provider. Off without an issuer."""

    issuer: str | None = None  # its metadata lie under /.well-known/openid-configuration of this address
    client_id: str | None = None
    client_secret: SecretStr | None = None
    scope: str = "openid profile email"
    label: str = "Sign in with your organisation"  # of the button
    name_claim: str = "preferred_username"
    roles_claim: str = "groups"

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.issuer is None:
            return self
        if self.client_id is None or self.client_secret is None:
            raise ValueError("an issuer needs client_id and client_secret")
        if not self.roles and self.default_role is None:
            raise ValueError("nobody would be let in: set roles or default_role")
        return self


class DeskSettings(_Section):
    """The leads' pages under /desk, and the API under /api/v1."""

    enabled: bool = True
    url: str | None = None  # as browsers reach the backend; default: web.public_url
    idle_hours: Hours = 12.0  # a session ends after so long without a request,
    longest_hours: Hours = 168.0  # and after so long in any case
    secret_key: Annotated[SecretStr, Field(min_length=24)] | None = None  # signs sessions
    # Addresses or networks of reverse proxies: only they may name the user, and the browser's address
    # (X-Forwarded-For).
    trusted_proxies: list[str] = []
    proxy: ProxySettings = ProxySettings()
    oidc: OidcSettings = OidcSettings()

    _is_address = field_validator("url")(_web_address)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ip_network(network)
        return value

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> Self:
        if self.proxy.header is not None and not self.trusted_proxies:
            raise ValueError("proxy.header is believed from nobody: name the proxy in trusted_proxies")
        return self


class MediaSettings(_Section):
    """Which images may be fetched, from where, and how large."""

    max_bytes: int = Field(default=512 * 2**20, gt=0)
    max_pixels: int = Field(default=400_000_000, gt=0)
    timeout_s: float = Field(default=30.0, gt=0)
    # http(s) hosts besides Label Studio's own; "*": every one. Private addresses must be listed themselves,
    # as an address or a network such as 10.0.0.0/8.
    allowed_hosts: list[str] = []
    s3_endpoint: str | None = None
    document_root: Path | None = None  # Label Studio's local files root, as this machine sees it


class TrainerSettings(_Section):
    """What a cycle's training may take of the worker's machine."""

    processes: int = Field(default=1, ge=1)  # that train together: one a GPU or core
    memory_gb: Annotated[float, Field(gt=0)] | None = None  # of main memory; more ends the training
    hours: Annotated[float, Field(gt=0)] | None = None  # of one attempt; more ends it


class LoopSettings(_Section):
    """Policy that a new project starts with; afterwards the ledger holds each project's own."""

    accept_threshold: Share | None = 0.9  # None (in the environment: none): nothing is accepted
    audit_share: Share = 0.1
    blind_share: Share = 0.2  # of the audits
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    labels_per_cycle: int = Field(default=50, ge=1)
    label_growth: float = Field(default=0.2, ge=0)  # or this share of the labels that there are
    cooldown_s: float = Field(default=600.0, ge=0)
    gain: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Cron | None = None  # in UTC
    retrain_on_alarm: bool = True
    approval: bool = False  # by a lead, of each version
    latency_s: Annotated[float, Field(gt=0)] | None = None  # that a version may take for an image
    strategy: Strategy = HYBRID  # that orders the review queue
    training: dict[str, Any] = {}  # overrides of model.training.TrainConfig

    _none_as_text = field_validator("accept_threshold", mode="before")(_none_as_text)


class Settings(BaseSettings):
    """Everything that can be set. Nested names are joined by two underscores: ELNET_WEB__PORT=9090."""

    model_config = SettingsConfigDict(
        env_prefix="ELNET_", env_nested_delimiter="__", extra="forbid", validate_default=True
    )

    state: Path = Field(default_factory=lambda: user_data_path("elnet"))  # ledger, models, media, secrets
    database_url: str | None = None  # default: SQLite in the state folder
    files: str | None = None  # that machines share: a folder or s3://bucket/prefix; default: the state folder
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trunk: str = "sam2-hiera-tiny"
    batch_size: int = Field(default=8, ge=1)
    flips: int = 1  # views that a prediction is the mean of
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    poll_s: float = Field(default=1.0, gt=0)  # how often the worker looks for work
    reconcile_s: float = Field(default=60.0, gt=0)  # how often it reads the tool for lost events
    label_studio: LabelStudioSettings = LabelStudioSettings()
    web: WebSettings = WebSettings()
    desk: DeskSettings = DeskSettings()
    media: MediaSettings = MediaSettings()
    trainer: TrainerSettings = TrainerSettings()
    loop: LoopSettings = LoopSettings()

    @field_validator("files")
    @classmethod
    def _folder_or_s3(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not re.match(r"s3://[^/]", value):
            raise ValueError(f"{value!r} should be a folder or s3://bucket/prefix")
        return value or None

    @field_validator("flips")
    @classmethod
    def _whole_group(cls, value: int) -> int:
        if value not in FLIPS:
            raise ValueError(f"{value} should be one of {', '.join(map(str, FLIPS))}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file that ELNET_CONFIG names."""
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if config := os.environ.get("ELNET_CONFIG"):
            if not Path(config).is_file():
                raise FileNotFoundError(f"ELNET_CONFIG names {config}, which is not a file")
            sources += (YamlConfigSettingsSource(settings_cls, yaml_file=config),)
        return sources

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.database_url or f"sqlite:///{self.state / 'ledger.sqlite'}"

    @property
    def jobs_url(self) -> str:
        """SQLAlchemy URL of the durable jobs: a file of its own on SQLite, the same PostgreSQL."""
        return self.database_url or f"sqlite:///{self.state / 'jobs.sqlite'}"

    @property
    def media_root(self) -> Path:
        """The folder of imported images, which is Label Studio's local files root."""
        return self.media.document_root or self.state / "media"

    @property
    def web_url(self) -> str:
        """The backend's address as Label Studio reaches it."""
        host = f"[{self.web.host}]" if ":" in self.web.host else self.web.host
        return (self.web.public_url or f"http://{host}:{self.web.port}").rstrip("/")

    @property
    def desk_url(self) -> str:
        """The backend's address as browsers reach it."""
        return (self.desk.url or self.web_url).rstrip("/")


class SettingsError(ELNetError):
    """A setting is unknown or out of range."""


def load_settings(**overrides: Any) -> Settings:
    """The settings in force.

    Raises:
        SettingsError: each wrong setting on a line of its own, with where it comes from.
    """
    try:
        return Settings(**overrides)
    except FileNotFoundError as error:
        raise SettingsError(str(error)) from error
    except ValidationError as error:
        lines = (
            f"ELNET_{'__'.join(str(part).upper() for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        )
        raise SettingsError(
            "The settings (environment, or the file that ELNET_CONFIG names) are not valid:\n  "
            + "\n  ".join(lines)
        ) from error
