"""What a sweep found: rows, the Pareto front as a picture and as configs, the hypervolume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import TrialState

from expressive_losses.errors import UserError
from expressive_losses.experiments.pareto import Point, hypervolume, pareto_front
from expressive_losses.experiments.sweep import Tuner, accuracies
from expressive_losses.run import write_json, write_text


def write(tuner: Tuner) -> dict[str, Any]:
    """Write trials.jsonl, summary.json, front.png and front/*.yaml to the tuner's folder; return the summary.

    The hypervolume is the area that the front dominates above (0, 0), of accuracies from 0 to 1. The exported configs
    are what the trials ran, but train on all training images: nothing is held out any more.
    """
    rows = tuner.rows()
    points = [accuracies(row) for row in rows]
    front = pareto_front(points)
    summary = {
        "sweep": tuner.sweep.name,
        "trials": len(rows),
        "pruned or diverged": sum(trial.state is not TrialState.COMPLETE for trial in tuner.done()),
        "failed": len(tuner.failed()),
        "still running": len(tuner.running()),
        "images": rows[0]["verify"]["held_out"]["images"] if rows else 0,
        "split": "validation",
        "verified by": tuner.sweep.verify.bound,
        "hypervolume": round(hypervolume([(x / 100, y / 100) for x, y in points]), 6),
        "front": [
            {"trial": rows[i]["trial"], **rows[i]["searched"], "natural": points[i][0], "verified": points[i][1]}
            for i in front
        ],
    }
    write_text(tuner.out / "trials.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(tuner.out / "summary.json", summary)
    _export(tuner, [rows[index] for index in front], tuner.out / "front")
    if rows:
        draw(points, front, summary, tuner.out / "front.png")
    return summary


def complaint(tuner: Tuner) -> str:
    """Return what is missing at the end of a run, and what to do about it; nothing if all is there."""
    parts = []
    if failed := tuner.failed():
        again = "tries anew" if tuner.sweep.grid else "tries other values in their place"
        parts.append(f"{len(failed)} of the trials failed, the same command {again}: {failed[0].user_attrs['error']}")
    if elsewhere := tuner.elsewhere():
        places = sorted({trial.user_attrs.get("where", "a place unknown") for trial in elsewhere})
        parts.append(
            f"{len(elsewhere)} of the trials run on another machine or were lost there, the same command goes on with "
            f"them at {', '.join(places)}"
        )
    return "; ".join(parts)


def _export(tuner: Tuner, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("trial-*.yaml"):
        old.unlink()
    sweep, trials = tuner.sweep, tuner.study.trials
    for row in rows:
        config = trials[row["trial"]].user_attrs["config"]
        natural, verified = accuracies(row)
        head = (
            f"# Trial {row['trial']} of sweep {sweep.name}: {natural:.2f} % natural, {verified:.2f} % verified by "
            f"{sweep.verify.bound} on {row['verify']['held_out']['images']} held-out training images.\n"
        )
        text = head + yaml.safe_dump({**config, "validation": 0.0, "paper": None}, sort_keys=False)
        write_text(folder / f"trial-{row['trial']}.yaml", text)


#: Below these steps is what the front dominates: their area, from (0, 0), is the hypervolume.
_FRONT = {"marker": "o", "drawstyle": "steps-pre", "lw": 1, "label": "Pareto front"}


def draw(points: Sequence[Point], front: Sequence[int], summary: dict[str, Any], path: Path) -> None:
    """Draw all trials and the front.

    Raises:
        UserError: when the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*points, strict=True), ".", color="grey", label="trials")
    axis.plot(*zip(*(points[index] for index in front), strict=True), **_FRONT)
    axis.set(
        xlabel="natural accuracy (%)",
        ylabel=f"verified by {summary['verified by']} (%)",
        title=f"{summary['sweep']}: hypervolume {summary['hypervolume']:.4f}, {summary['images']} held-out images",
    )
    axis.title.set_fontsize(9)
    axis.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None
