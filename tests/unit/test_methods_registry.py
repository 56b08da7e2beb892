from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

import headwater.methods as methods
from headwater.methods import GradDot, Lexical, get, names, register, table
from headwater.types import Method, UsageError

BUILT_IN = ["grad_dot", "grad_cos", "repsim", "repsim_response", "lexical", "tfidf", "embedding", "length", "loss", "random"]
BUILT_IN += ["relatif", "self_influence", "tracin", "less", "trak", "trackstar", "dda", "rept", "fastif"]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(methods, "_methods", dict(methods._methods))
    return methods._methods


@dataclass(frozen=True)
class Third(GradDot):
    name = "third_party"


def declare(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    points = EntryPoints([EntryPoint(name=name, value=value, group=methods.GROUP)])
    monkeypatch.setattr(methods, "entry_points", lambda *, group: points.select(group=group))


def test_the_built_in_methods() -> None:
    assert names()[: len(BUILT_IN)] == BUILT_IN
    for name in BUILT_IN:
        method = get(name, **({"model": "some/encoder"} if name == "embedding" else {}))
        assert isinstance(method, Method)
        assert method.name == name


def test_options_reach_the_method() -> None:
    assert get("lexical", text="prompt") == Lexical(text="prompt")


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UsageError, match="there is no method 'gradcos': did you mean grad_cos"):
        get("gradcos")
    with pytest.raises(UsageError, match="there are: grad_dot, grad_cos"):
        get("zzz")


def test_a_wrong_option_says_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"lexical: .*'stopwords'.*Its options: text='both', k1=1.5, b=0.75"):
        get("lexical", stopwords="english")
    with pytest.raises(UsageError, match=r"embedding: .*'model'.*model \(required\)"):
        get("embedding")
    with pytest.raises(UsageError, match="Its options: none"):
        get("grad_dot", damping=1.0)


def test_a_registered_method_is_found(registry: dict[str, Any]) -> None:
    assert register(Third) is Third
    assert get("third_party") == Third()
    assert names()[-1] == "third_party"
    register(Third)  # a module that is imported twice is no second method


def test_a_name_is_taken_once(registry: dict[str, Any]) -> None:
    class Other:
        name = "grad_dot"

    with pytest.raises(UsageError, match=r"'grad_dot' is registered already \(headwater\.methods\.grad_dot\.GradDot\)"):
        register(Other)


def test_an_installed_package_declares_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, "third_party", f"{__name__}:Third")
    assert "third_party" in names()
    assert get("third_party") == Third()


def test_a_broken_package_breaks_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, "broken", "no_such_module:Method")
    with pytest.raises(UsageError, match=r"method 'broken' of package .* cannot be loaded \(ModuleNotFoundError"):
        get("broken")
    assert {line["name"]: line for line in table()}["broken"]["summary"].startswith("method 'broken'")
    assert get("grad_dot") == GradDot()


def test_the_table_says_what_needs_what() -> None:
    lines = {line["name"]: line for line in table()}
    assert lines["grad_dot"]["needs"] == ["gradient"]
    assert lines["lexical"]["needs"] == ["prompt", "response"]
    assert lines["dda"]["needs"] == ["gradient", "members:base"]
    assert (lines["grad_dot"]["unit"], lines["grad_cos"]["unit"]) == ("nats", None)
    assert all(set(line) == {"name", "unit", "needs", "cost", "reference", "summary"} for line in lines.values())
    assert all(line["summary"] and line["cost"] and line["reference"] for line in lines.values())
    json.dumps(table())


def test_the_registry_is_light() -> None:
    """Its table is printed by a command that runs nothing: no search engine, no transformers, no plotting."""
    heavy = ["bm25s", "transformers", "datasets", "pandas", "matplotlib"]
    code = f"import sys, headwater.methods as m; m.table(); print([n for n in {heavy} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
