"""The W&B view, built and serialized if the extra is installed, without a real server."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gen1_train.errors import UserError
from gen1_train.reporting import dashboard as module
from gen1_train.reporting.dashboard import DashboardConfig, build, dashboard
from gen1_train.reporting.panels import SECTIONS, Panel, Style
from gen1_train.system.console import console

PANELS = [panel for section in SECTIONS for panel in section.panels]


@pytest.fixture
def workspaces() -> Any:
    return pytest.importorskip("wandb_workspaces.workspaces", reason="needs the extra `dashboard`")


@pytest.fixture
def server(workspaces: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A fake W&B with one project, my-team/gen1-train: its views by name, each with an id."""
    views: dict[str, dict[str, Any]] = {}

    def answer(api: object, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            inserted = "id" not in variables
            view = {"id": f"id-{len(views)}", **variables} if inserted else variables
            assert inserted or views[view["name"]]["id"] == view["id"]
            views[view["name"]] = view
            return {"upsertView": {"view": {"id": view["id"], "name": view["name"]}, "inserted": inserted}}
        if (variables["entityName"], variables["projectName"]) != ("my-team", "gen1-train"):
            return {"project": None}
        found = [view for name, view in views.items() if name == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}

    from wandb_workspaces.workspaces import interface, internal

    monkeypatch.setattr(internal, "execute_graphql", answer)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.test")
    monkeypatch.setattr("wandb.Api", lambda *_, **__: None)
    monkeypatch.setattr("wandb.login", lambda **_: True)
    return views


def specification(view: Any) -> dict[str, Any]:
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def test_every_panel_is_in_its_section(workspaces: Any) -> None:
    section = specification(build("my-team", "gen1-train"))
    made = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    assert {name: [panel["config"]["chartTitle"] for panel in panels] for name, panels in made.items()} == {
        part.title: [panel.title for panel in part.panels] for part in SECTIONS
    }
    plots = [panel["config"] for panels in made.values() for panel in panels]
    for panel, config in zip(PANELS, plots, strict=True):
        assert shown(panel, config) == set(panel.matching(COLUMNS))
        assert config.get("yLogScale", False) == panel.log
        assert (config["plotType"] == "stacked-area") == (panel.style is Style.AREAS)
        assert ("smoothingWeight" in config) == (panel.style is Style.LINES)


COLUMNS = {name for panel in PANELS for name in panel.columns if "*" not in name} | {"replaced_shape", "replaced_read"}


def shown(panel: Panel, config: dict[str, Any]) -> set[str]:
    """Returns the columns that W&B would draw."""
    if config.get("useMetricRegex"):
        return {name for name in COLUMNS if re.fullmatch(config["metricRegex"], name)}
    return set(config["metrics"])


def test_runs_are_grouped_by_stage(workspaces: Any) -> None:
    (runs,) = specification(build("my-team", "gen1-train"))["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "stage.value.name"}]


def test_calling_again_updates_the_same_view(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with console("gen1-train"):
            dashboard(DashboardConfig("my-team/gen1-train"))
        assert capsys.readouterr().out == "https://wandb.test/my-team/gen1-train?nw=gen1train\n"
    assert list(server) == ["nw-gen1train-v"] and server["nw-gen1train-v"]["displayName"] == "gen1-train"
    assert "Where the time goes" in server["nw-gen1train-v"]["spec"]


def test_a_missing_project_is_reported(server: Any) -> None:
    with pytest.raises(UserError, match=r"no view for my-team/other: Project `my-team/other` not found"):
        dashboard(DashboardConfig("my-team/other"))


def test_a_refusal_of_the_server_is_reported(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(entity: str, project: str) -> str:
        raise wandb.errors.CommError("permission denied")

    monkeypatch.setattr(module, "existing", refuse)
    with pytest.raises(UserError, match="W&B refused the view of my-team/gen1-train: permission denied"):
        dashboard(DashboardConfig("my-team/gen1-train"))


def test_the_error_without_a_login_names_the_remedy(
    workspaces: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="not logged in to W&B: call `wandb login`, or set WANDB_API_KEY"):
        dashboard(DashboardConfig("my-team/gen1-train"))


@pytest.mark.parametrize("address", ["", "/", "gen1-train", "my-team/", "/gen1-train", "a/b/c"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="give ENTITY/PROJECT"):
        dashboard(DashboardConfig(address))


def test_the_error_without_the_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="pip install wandb-workspaces"):
        dashboard(DashboardConfig("my-team/gen1-train"))
