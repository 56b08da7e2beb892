"""`members/NAME/member.json`: what a further index of the rows is. The rest of the folder is a run like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from headwater.atomic import read_json, write_json
from headwater.types import IntegrityError, MemberRole

FORMAT = 1
WAY_OUT = "It says what the member is: run the `headwater index` command that made it again, or delete the member's folder."


@dataclass(frozen=True)
class MemberRecord:
    """`order` is the member's place among those of its role. `is_main`: its rows would be the main index's own, which stand for them."""

    name: str
    role: MemberRole
    order: int
    step: int | None = None
    learning_rate: float | None = None
    notes: tuple[str, ...] = ()
    is_main: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self), "notes": list(self.notes)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> MemberRecord:
        if value["role"] not in get_args(MemberRole):
            raise ValueError(f"role is {value['role']!r}, expected one of {', '.join(get_args(MemberRole))}")
        fields = {name: value[name] for name in ("name", "role", "order", "step", "learning_rate", "is_main")}
        return MemberRecord(**fields, notes=tuple(value["notes"]))


def member_home(run: Path, name: str) -> Path:
    return run / "members" / name


def write_member(run: Path, record: MemberRecord) -> None:
    """Nothing is written where the same record is there."""
    path = member_home(run, record.name) / "member.json"
    if not path.exists() or read_member(path) != record:
        write_json(path, record.to_json())


def read_member(path: Path) -> MemberRecord:
    value = read_json(path, way_out=WAY_OUT)
    try:
        return MemberRecord.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not the record of a member ({type(error).__name__}: {error}). {WAY_OUT}") from error


def read_members(run: Path) -> list[MemberRecord]:
    """Every member of a run, by role and then in order. Raises IntegrityError for a damaged record."""
    found = [read_member(path) for path in (run / "members").glob("*/member.json")]
    roles = list(get_args(MemberRole))
    return sorted(found, key=lambda record: (roles.index(record.role), record.order))
