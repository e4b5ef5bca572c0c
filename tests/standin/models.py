"""The bodies that the dialect knows: fields, names' patterns, choices. Unknown fields are an error, as on a strict server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

FORMAT = "%Y-%m-%dT%H:%M:%S.%f"


def _naive_utc(text: str) -> str:
    datetime.strptime(text, FORMAT)
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9\-_\s/.:]+$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9\-_\s/.:=><+()%]+$")]
Word = Annotated[str, StringConstraints(pattern=r"^[\w\-\s.]+$")]  # tags and metadata's keys
Path = Annotated[str, StringConstraints(pattern=r"^/.*")]
Identity = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{22}$")]
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Timestamp = Annotated[str, AfterValidator(_naive_utc)]
Step = Annotated[int, Field(ge=0, le=2**63 - 1)]
Status = Literal["created", "running", "completed", "failed", "terminated", "lost"]
Category = Literal["input", "output", "code"]
Metadata = dict[Word, Any]


class Body(BaseModel):
    """Whatever is not listed is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Notifications(Body):
    """Which ends of a run send mail."""

    state: Literal["none", "all", "error", "lost"] = "none"


class Run(Body):
    """A run."""

    folder: Path
    name: Name | None = None
    system: dict[str, Any] | None = None
    status: Status = "created"
    description: str | None = None
    visibility: dict[str, Any] | None = None
    ttl: PositiveInt | None = None
    tags: list[Word] = []
    metadata: Metadata | None = None
    heartbeat_timeout: PositiveInt | None = 180
    alerts: list[Identity] = []
    notifications: Notifications = Notifications()
    started: Timestamp | None = None
    endtime: Timestamp | None = None


class Folder(Body):
    """A folder of runs."""

    path: Path
    name: str | None = None
    description: str | None = None
    metadata: Metadata | None = None
    tags: list[Word] = []
    ttl: NonNegativeInt | None = None
    visibility: dict[str, Any] | None = None


class Tag(Body):
    """A tag with its looks."""

    name: Word
    colour: str | None = None
    description: str | None = None
    visibility: dict[str, Any] | None = None


class EventsRule(Body):
    """When an event's text raises the alert."""

    pattern: str
    frequency: PositiveInt


class _MetricRule(Body):
    frequency: PositiveInt
    window: PositiveInt
    metric: str
    aggregation: Literal["average", "sum", "at least one", "all"]


class ThresholdRule(_MetricRule):
    """When a metric passes a limit."""

    rule: Literal["is above", "is below"]
    threshold: float


class RangeRule(_MetricRule):
    """When a metric enters or leaves a range."""

    rule: Literal["is inside range", "is outside range"]
    range_low: float
    range_high: float

    @model_validator(mode="after")
    def _ordered(self) -> RangeRule:
        if self.range_low >= self.range_high:
            raise ValueError("range_low must be below range_high")
        return self


class Alert(Body):
    """An alert; `alert` has its rule, by source."""

    name: Name
    source: Literal["events", "metrics", "user"]
    description: str | None = None
    notification: Literal["none", "email"] = "none"
    enabled: bool = True
    abort: bool = False
    alert: EventsRule | ThresholdRule | RangeRule | None = None
    tags: list[Word] = []
    run_tags: list[Word] = []
    auto: bool = False
    delay: NonNegativeInt = 0

    @model_validator(mode="after")
    def _fits(self) -> Alert:
        fitting = {"events": (EventsRule,), "metrics": (ThresholdRule, RangeRule), "user": (type(None),)}[self.source]
        if not isinstance(self.alert, fitting):
            raise ValueError(f"alert does not fit source {self.source}")
        return self


class Artifact(Body):
    """What is said of a file before its content is sent."""

    name: Name
    size: NonNegativeInt
    checksum: Checksum
    original_path: str = ""
    mime_type: str | None = None
    metadata: dict[str, Any] | None = None


class Grid(Body):
    """One or two axes with their ticks."""

    name: str
    grid: Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1, max_length=2)]
    labels: list[str]

    @model_validator(mode="after")
    def _labelled(self) -> Grid:
        if len(self.labels) != len(self.grid):
            raise ValueError("one label for each axis")
        return self


class Storage(Body):
    """Where contents are kept; only remembered here."""

    name: str
    backend: Literal["S3", "File"]
    config: dict[str, Any] | None = None
    disable_check: bool = False
    is_tenant_useable: bool = True
    is_default: bool = False
    is_enabled: bool = True


class Tenant(Body):
    """An organisation; only remembered here."""

    name: str
    is_enabled: bool = True
    max_request_rate: NonNegativeInt = 0
    max_runs: NonNegativeInt = 0
    max_data_volume: NonNegativeInt = 0


class User(Body):
    """A person; only remembered here."""

    user: dict[str, Any]
    tenant: str


class MetricSet(Body):
    """Values of one step."""

    time: StrictInt | StrictFloat
    timestamp: Timestamp | None = None
    step: Step
    values: dict[MetricName, StrictBool | StrictInt | StrictFloat]


class Metrics(Body):
    """A batch of points."""

    run: Identity
    metrics: list[MetricSet]


class Event(Body):
    """One message."""

    message: str
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None
    timestamp: Timestamp | None = None


class Events(Body):
    """A batch of events."""

    run: Identity
    events: list[Event]


class GridMetricSet(Body):
    """An array at one step."""

    time: StrictInt | StrictFloat
    timestamp: Timestamp | None = None
    step: Step
    array: list[float] | list[list[float]]
    grid: Identity
    metric: MetricName


GridMetrics = TypeAdapter(list[GridMetricSet])
MODELS: dict[str, type[Body]] = {
    "folders": Folder, "runs": Run, "alerts": Alert, "tags": Tag, "grids": Grid, "artifacts": Artifact,
    "storage": Storage, "tenants": Tenant, "users": User,
}  # fmt: skip


M = TypeVar("M", bound=BaseModel)


class Refused(Exception):
    """The request is answered with this status and detail."""

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def check(model: type[M], body: object, *, strict: bool = True) -> M:
    """Return the body as a model. Raises Refused(422) with a list of what is wrong, as pydantic has it."""
    try:
        return model.model_validate(body, extra=None if strict else "ignore")
    except ValidationError as error:
        raise Refused(422, details(error)) from None


def details(error: ValidationError) -> list[dict[str, Any]]:
    """Return what is wrong in the shape that such servers answer with."""
    return [{"type": e["type"], "loc": ["body", *e["loc"]], "msg": e["msg"]} for e in error.errors(include_url=False)]
