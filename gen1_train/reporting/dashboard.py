"""`gen1-train dashboard=ENTITY/PROJECT`: the panels of gen1_train.reporting.panels as a saved view of a W&B project.

The view has its own name in the project, and calling again updates it. This overwrites manual changes, so save a
changed view under another name. W&B shows metrics that no panel names below the panels.
"""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import wandb
from omegaconf import MISSING

from gen1_train.errors import UserError
from gen1_train.reporting.panels import SECTIONS, Panel, Style
from gen1_train.system.console import ConsoleConfig, show

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Workspace

TITLE = "gen1-train"
VIEW = "gen1train"  # in the URL of the view, ?nw=gen1train; W&B stores it as nw-gen1train-v
SMOOTHING = 0.9  # weight of W&B's time-weighted running mean


@dataclass
class DashboardConfig:
    dashboard: str = MISSING  # ENTITY/PROJECT in W&B; the project that runs log to is log.project
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal


def dashboard(config: DashboardConfig) -> None:
    """Creates or updates the view, and prints its URL. Raises UserError."""
    entity, _, project = config.dashboard.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"dashboard={config.dashboard}: give ENTITY/PROJECT, such as my-team/gen1-train")
    view = build(entity, project)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        if not wandb.login(prompt=False, verify=False):
            raise UserError("not logged in to W&B: call `wandb login`, or set WANDB_API_KEY")
        view._internal_id = existing(entity, project)
        show(view.save().url, public=True)
    except wandb.errors.Error as error:
        raise UserError(f"W&B refused the view of {entity}/{project}: {error}") from error


def build(entity: str, project: str) -> "Workspace":
    """Builds the view: sections with their panels, runs grouped by stage. Raises UserError without the extra."""
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
    """Converts a panel to a plot of W&B."""
    from wandb_workspaces.reports.v2 import LinePlot

    line = LinePlot(
        title=panel.title,
        title_y=panel.unit or None,
        log_y=panel.log or None,
        plot_type="stacked-area" if panel.style is Style.AREAS else "line",
        point_visualization_method="bucketing-gorilla",  # keeps minima and maxima, as the page does
    )
    if any(name.endswith("*") for name in panel.columns):
        line.metric_regex = "|".join(name.replace("*", ".*") for name in panel.columns)
    else:
        line.y = list(panel.columns)
    if panel.style is Style.LINES:
        line.smoothing_type = "exponentialTimeWeighted"
        line.smoothing_factor = SMOOTHING
        line.smoothing_show_original = True
    return line


def existing(entity: str, project: str) -> str:
    """Returns the id of the project's view; "" if there is none yet. Raises UserError, wandb.errors.Error."""
    from wandb_workspaces.workspaces import Workspace

    try:
        return Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")._internal_id
    except ValueError as error:
        if str(error).startswith("Workspace"):  # `…` not found in project `…`
            return ""
        raise UserError(f"no view for {entity}/{project}: {error}") from error
