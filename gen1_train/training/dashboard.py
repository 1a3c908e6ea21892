"""`gen1-train dashboard=ENTITY/PROJECT`: the panels of gen1_train.training.panels as a saved view of a W&B project.

The view has a name of its own in the project: calling again brings that one up to date. What somebody changed in it by
hand is gone then, so save such a view under another name. Metrics that no panel names W&B shows by itself, below.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import wandb
from omegaconf import MISSING

from gen1_train.errors import UserError
from gen1_train.training.panels import SECTIONS, Panel, Style

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Workspace

TITLE = "gen1-train"
VIEW = "gen1train"  # in the address of the view, ?nw=gen1train; W&B keeps it as nw-gen1train-v
SMOOTHING = 0.9  # of W&B's time-weighted running mean


@dataclass
class DashboardConfig:
    dashboard: str = MISSING  # ENTITY/PROJECT in W&B; the project that runs log to is log.project


def dashboard(config: DashboardConfig) -> None:
    """Makes the view or brings it up to date, and says where it is. Raises UserError."""
    entity, _, project = config.dashboard.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"dashboard={config.dashboard}: give ENTITY/PROJECT, such as my-team/gen1-train")
    view = build(entity, project)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        if not wandb.login(prompt=False, verify=False):
            raise UserError("not logged in to W&B: call `wandb login`, or set WANDB_API_KEY")
        view._internal_id = existing(entity, project)
        print(view.save().url)
    except wandb.errors.Error as error:
        raise UserError(f"W&B did not take the view of {entity}/{project}: {error}") from error


def build(entity: str, project: str) -> "Workspace":
    """The whole view: sections with their panels, runs grouped by stage. Raises UserError without the extra."""
    try:
        from wandb_workspaces import workspaces
    except ImportError:
        raise UserError("dashboard= needs the extra `dashboard`: pip install wandb-workspaces") from None
    sections = [
        workspaces.Section(name=section.title, panels=[plot(panel) for panel in section.panels], is_open=True)
        for section in SECTIONS
    ]
    grouping = workspaces.RunsetSettings(groupby=[workspaces.Config("stage.name")])
    view = workspaces.Workspace(entity=entity, project=project, name=TITLE, sections=sections, runset_settings=grouping)
    view._internal_name = f"nw-{VIEW}-v"
    return view


def plot(panel: Panel) -> "LinePlot":
    """A panel as W&B draws it."""
    from wandb_workspaces.reports.v2 import LinePlot

    line = LinePlot(
        title=panel.title,
        title_y=panel.unit or None,
        log_y=panel.log or None,
        plot_type="stacked-area" if panel.style is Style.AREAS else "line",
        point_visualization_method="bucketing-gorilla",  # keeps the lowest and the highest, as the page does
    )
    if any(name.endswith("*") for name in panel.columns):
        line.metric_regex = "|".join(name.replace("*", ".*") for name in panel.columns)
    else:
        line.y = list(panel.columns)
    if panel.style is Style.LINES:
        line.smoothing_type, line.smoothing_factor = "exponentialTimeWeighted", SMOOTHING
        line.smoothing_show_original = True
    return line


def existing(entity: str, project: str) -> str:
    """The id of the project's view of that name; "" if there is none yet. Raises UserError, wandb.errors.Error."""
    from wandb_workspaces.workspaces import Workspace

    try:
        return Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")._internal_id
    except ValueError as error:
        if str(error).startswith("Workspace"):  # `…` not found in project `…`
            return ""
        raise UserError(f"no view for {entity}/{project}: {error}") from error
