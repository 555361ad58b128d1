"""The dashboard of a project in W&B, defined here: what an engineer looks at first, in its order.

Needs the extra `workspace`. What is drawn is the keys that `cathpc.tracking.rows` and `shown` log.
"""

from __future__ import annotations

from typing import Any

from cathpc.errors import TryAgainError, UserError
from cathpc.tracking.config import TrackerConfig
from cathpc.tracking.rows import AXIS

TITLE = "cathpc"
CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    "Learning": {
        "loss, training and held out": ("train/loss", "eval/loss"),
        "gradient norm": ("train/grad_norm",),
        "learning rate": ("train/lr",),
        "steps dropped (spikes)": ("train/spikes",),
    },
    "Speed": {
        "tokens a second": ("train/tokens_per_s",),
        "MFU": ("train/mfu",),
        "goodput": ("train/goodput",),
        "memory, GB": ("train/memory_gb",),
        "seconds of a step": tuple(f"train/seconds/{part}" for part in ("data", "forward", "backward", "step")),
        "seconds of a save": ("train/seconds/save",),
    },
    "Reliability": {
        "requeues": ("train/requeues",),
        "slow ranks": ("train/slow_ranks",),
    },
}
"""Section -> title of a panel -> its keys, over the global step."""
NUMBERS = {
    "Result": {"records kept": "kept", "held-out loss": "eval_loss", "fidelity, tuned": "fidelity/tuned"},
}
FIGURES = {
    "Data": ("figures/set_aside_table", "figures/dropped_table", "figures/perplexity", "figures/refusal"),
    "Report": (
        "figures/flow",
        "figures/population",
        "figures/length-reasoning",
        "figures/length-health",
        "figures/train-loss",
        "figures/fidelity",
    ),
}
"""Section -> keys of media."""


def build(tracker: TrackerConfig, entity: str) -> Any:
    """The workspace; raises `UserError` where the extra is not installed."""
    try:
        import wandb_workspaces.reports.v2.interface as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("a workspace needs an extra: pip install 'cathpc[workspace]'") from None
    sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[panels.LinePlot(title=title, x=AXIS, y=list(keys)) for title, keys in curves.items()],
        )
        for name, curves in CURVES.items()
    ]
    sections += [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[panels.ScalarChart(title=title, metric=key, groupby_aggfunc="max") for title, key in each.items()],
        )
        for name, each in NUMBERS.items()
    ]
    sections += [
        workspaces.Section(name=name, is_open=True, panels=[panels.MediaBrowser(media_keys=[key]) for key in keys])
        for name, keys in FIGURES.items()
    ]
    sections.append(
        workspaces.Section(name="Sweep", is_open=True, panels=[panels.MediaBrowser(media_keys=["tables/runs"])])
    )
    return workspaces.Workspace(
        name=TITLE,
        entity=entity,
        project=tracker.project,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group"), workspaces.Metric("JobType")],
        ),
    )


def save(tracker: TrackerConfig) -> str:
    """Make the dashboard; its address. Raises `TryAgainError` where W&B does not take it."""
    import wandb

    try:
        entity = tracker.entity or str(wandb.Api().default_entity)
        workspace = build(tracker, entity)
        workspace.save()
    except UserError:
        raise
    except Exception as error:  # third-party code over a network
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TryAgainError(f"W&B did not take the workspace ({first})") from None
    return f"workspace  {workspace.url}"
